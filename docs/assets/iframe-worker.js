// The search runs in a worker, and a browser starts none for pages opened from disk: there its script runs in a hidden
// frame that takes and sends the same messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const load = src => new Promise((done, failed) => {
        const script = this.scope.document.createElement("script")
        Object.assign(script, { src, onload: done, onerror: failed })
        this.scope.document.head.append(script)
      })
      this.scope.importScripts = (...urls) => Promise.all(urls.map(load))
      this.ready = load(url)
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
