"""A small Hub on 127.0.0.1: the part of the API of huggingface.co that huggingface_hub, diffusers and datasets call.

State is kept in memory. Large files go the LFS way (`HF_HUB_DISABLE_XET=1` on the client's side), are stored once by
their hash, and are given out by a redirect to another host that refuses credentials, as the Hub's storage does.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".jpg")
LFS_SIZE = 10 * 2**20  # bytes; from here on any file goes the LFS way
TOKENS = {  # token -> who it is of, and what it may do
    "hf_alice": {"name": "alice", "role": "write", "orgs": ["lab"]},
    "hf_reader": {"name": "alice", "role": "read", "orgs": ["lab"]},
    "hf_bob": {"name": "bob", "role": "write", "orgs": []},
}


@dataclass(frozen=True)
class Blob:
    """One version of a file."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        """Git's hash of what is in the repository: the file, or for LFS the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        content = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: commits by hash, branches by name."""

    kind: str  # "model" or "dataset"
    id: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        listing = json.dumps({path: blob.git_oid for path, blob in sorted(files.items())})
        sha = hashlib.sha1(f"{len(self.commits)} {title} {listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.titles.append(title)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        return sha if sha in self.commits else None

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.branches[revision]]


class RefusalError(Exception):
    """An answer that is an error, with the headers by which huggingface_hub distinguishes errors."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


class HubServer:
    """The server with its state; `with HubServer() as hub: hub.url`."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}  # LFS files by sha256
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.uploads: list[str] = []  # sha256 of each LFS file that came in whole
        self.broken_uploads = 0  # how many were cut off
        self.lock = threading.Lock()
        self._breaks = (0, 0)  # cut uploads larger than this many bytes, this many times
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage_url = f"http://localhost:{self.port}"  # another origin for the client, as the Hub's storage is

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self._http.shutdown()
        self._http.server_close()

    def break_uploads(self, after: int, times: int) -> None:
        """Close the connection after so many bytes of an LFS upload that is larger, the next so many times."""
        self._breaks = (after, times)

    def cut_here(self, length: int) -> int | None:
        """After how many bytes to cut an upload of this length; None lets it through."""
        with self.lock:
            after, times = self._breaks
            if times <= 0 or length <= after:
                return None
            self._breaks = (after, times - 1)
            self.broken_uploads += 1
            return after

    def environment(self, home: Path, token: str | None = "hf_alice") -> dict[str, str]:
        """Variables for a process that is to talk to this Hub, with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def add_repo(
        self, repo_id: str, files: dict[str, bytes] | None = None, kind: str = "model", private: bool = False
    ) -> Repo:
        """Put a repository there as if somebody had made it."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        blobs = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in (files or {}).items()}
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False), **blobs}, "initial commit")
        return repo

    def model(self, repo_id: str) -> Repo:
        return self.repos["model", repo_id]

    def dataset(self, repo_id: str) -> Repo:
        return self.repos["dataset", repo_id]


def check_card(text: str, kind: str) -> list[str]:
    """What the Hub would say against the metadata of a card; the checks of it that matter to ours."""
    block = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    if not block:
        return []
    try:
        values = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(values, dict):
        return ["metadata must be a mapping"]
    errors = []
    for key in ("license", "pipeline_tag", "library_name", "pretty_name"):
        if not isinstance(values.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    if not re.fullmatch(r"[a-z0-9.-]*", str(values.get("license", ""))):
        errors.append('"license" must be one of the known names')
    for key in ("tags", "task_categories"):
        if not all(isinstance(entry, str) for entry in values.get(key, [])):
            errors.append(f'"{key}" must be a list of strings')
    for number, model in enumerate(values.get("model-index", [])):
        for result in model.get("results", [{}]):
            required = {"task": ("type",), "dataset": ("type", "name")}
            lacks = [f"{part}.{key}" for part in required for key in required[part] if key not in result.get(part, {})]
            lacks += [key for metric in result.get("metrics", [{}]) for key in ("type", "value") if key not in metric]
            errors += [f'"model-index[{number}]" lacks {", ".join(lacks)}'] if lacks or "name" not in model else []
    if kind == "dataset":
        for entry in values.get("configs", []):
            errors += [] if "config_name" in entry and "data_files" in entry else ['"configs" must name data_files']
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *_values) -> None:  # the test's own log is `hub.requests`
        return

    def do_GET(self) -> None:  # noqa: N802 (the name http.server looks for)
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    # Routes: pattern of the path -> method of this class; groups are URL-decoded

    ROUTES = [
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/repos/create", "create_repo"),
        (r"POST /api/validate-yaml", "validate_card"),
        (r"GET /api/(model|dataset)s/([^/]+/[^/]+)", "info"),
        (r"GET /api/(model|dataset)s/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        (r"GET /api/(model|dataset)s/([^/]+/[^/]+)/refs", "refs"),
        (r"GET /api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", "tree"),
        (r"POST /api/(model|dataset)s/([^/]+/[^/]+)/paths-info/([^/]+)", "paths_info"),
        (r"POST /api/(model|dataset)s/([^/]+/[^/]+)/branch/([^/]+)", "create_branch"),
        (r"POST /api/(model|dataset)s/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        (r"POST /api/(model|dataset)s/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        (r"POST /(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        (r"PUT /storage/([0-9a-f]{64})", "lfs_upload"),
        (r"POST /storage/([0-9a-f]{64})/verify", "lfs_verify"),
        (r"(?:GET|HEAD) /storage/([0-9a-f]{64})", "lfs_download"),
        (r"(?:GET|HEAD) /(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path))
        self.body = None
        try:
            for pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, f"{self.command} {url.path}")
                if match:
                    if name != "lfs_upload":
                        self.body = self._read()
                    getattr(self, name)(*[group and unquote(group) for group in match.groups()])
                    return
            self.body = self._read()
            raise RefusalError(404, f"no such page: {self.command} {url.path}")
        except RefusalError as refusal:
            self._send(refusal.status, {"error": str(refusal)}, refusal.headers)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: object = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/octet-stream" if isinstance(content, bytes) else "application/json"}
        sent |= {"X-Request-Id": f"request-{len(self.hub.requests)}", **(headers or {})}
        if status != 304:
            sent.setdefault("Content-Length", str(len(data)))
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    # Who asks, and for what

    def _user(self, needed: bool = False) -> dict | None:
        given = self.headers.get("Authorization")
        if given is None:
            if needed:
                raise RefusalError(401, "Invalid username or password.")
            return None
        user = TOKENS.get(given.removeprefix("Bearer "))
        if user is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        user = self._user()
        repo = self.hub.repos.get((kind, repo_id))
        owner = repo_id.split("/")[0]
        mine = user is not None and owner in (user["name"], *user["orgs"])
        if repo is None or (repo.private and not mine):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise RefusalError(status, message, "RepoNotFound")
        if write and user is None:
            raise RefusalError(401, "Invalid username or password.")
        if write and not (mine and user["role"] == "write"):
            raise RefusalError(403, f"You don't have write access to {repo_id}")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # Accounts and repositories

    def whoami(self) -> None:
        user = self._user(needed=True)
        self._send(
            200,
            {
                "type": "user",
                "name": user["name"],
                "orgs": [{"type": "org", "name": name} for name in user["orgs"]],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}},
            },
        )

    def create_repo(self) -> None:
        user, request = self._user(needed=True), self._json()
        owner = request.get("organization") or user["name"]
        repo_id, kind = f"{owner}/{request['name']}", request.get("type") or "model"
        if user["role"] != "write" or owner not in (user["name"], *user["orgs"]):
            raise RefusalError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            message = "You already created this repo"
            self._send(409, {"error": message, "url": url}, {"X-Error-Message": message})
            return
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.hub.add_repo(repo_id, kind=kind, private=private)
        self._send(200, {"url": url, "name": repo_id})

    def validate_card(self) -> None:
        request = self._json()
        errors = check_card(request["content"], request["repoType"])
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        self._send(400 if errors else 200, answer)

    def info(self, kind: str, repo_id: str, revision: str | None = None) -> None:
        repo = self._repo(kind, repo_id)
        sha = self._commit_of(repo, revision or "main")
        siblings = []
        for path, blob in sorted(repo.commits[sha].items()):
            siblings.append({"rfilename": path})
            if "blobs" in self.query:
                siblings[-1] |= {"size": len(blob.data), "blobId": blob.git_oid}
                if blob.is_lfs:
                    siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}
        values = {"author": repo_id.split("/")[0], "private": repo.private, "gated": False, "disabled": False}
        values |= {"sha": sha, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        if "expand" in self.query:
            values = {key: value for key, value in values.items() if key in self.query["expand"]}
        self._send(200, {"_id": repo_id, "id": repo_id, **values})

    def refs(self, kind: str, repo_id: str) -> None:
        repo = self._repo(kind, repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.branches.items()
        ]
        self._send(200, {"branches": branches, "tags": [], "converts": []})

    def create_branch(self, kind: str, repo_id: str, branch: str) -> None:
        repo = self._repo(kind, repo_id, write=True)
        if branch in repo.branches:
            raise RefusalError(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = self._commit_of(repo, self._json().get("startingPoint") or "main")
        self._send(200, b"OK")

    # Trees

    def _entry(self, path: str, blob: Blob) -> dict:
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
        if blob.is_lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
        if self.query.get("expand") in (["true"], ["True"]):
            entry["lastCommit"] = {"id": "0" * 40, "title": "a commit", "date": "2024-01-01T00:00:00.000Z"}
        return entry

    def _folders(self, files: dict[str, Blob]) -> set[str]:
        return {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}

    def _folder_entry(self, path: str) -> dict:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}

    def tree(self, kind: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        repo = self._repo(kind, repo_id)
        sha = self._commit_of(repo, revision)
        files = repo.commits[sha]
        prefix = f"{folder}/" if folder else ""
        if folder and folder not in self._folders(files):
            raise RefusalError(404, f"{folder} does not exist on {revision}", "EntryNotFound", sha)
        recursive = self.query.get("recursive") in (["true"], ["True"], ["1"])

        def listed(path: str) -> bool:
            return path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))

        entries = [self._folder_entry(path) for path in sorted(self._folders(files)) if listed(path)]
        entries += [self._entry(path, blob) for path, blob in sorted(files.items()) if listed(path)]
        self._send(200, entries)

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(kind, repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = self._json()["paths"]
        else:
            paths = parse_qs((self.body or b"").decode()).get("paths", [])
        entries = [self._entry(path, files[path]) for path in paths if path in files]
        entries += [self._folder_entry(path) for path in paths if path in self._folders(files)]
        self._send(200, entries)

    # Uploads

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(kind, repo_id, write=True)
        files = repo.commits[self._commit_of(repo, revision)]
        answers = []
        for request in self._json()["files"]:
            path = request["path"]
            is_lfs = path.endswith(LFS_SUFFIXES) or request["size"] >= LFS_SIZE
            answer = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = files[path].sha256 if files[path].is_lfs else files[path].git_oid
            answers.append(answer)
        self._send(200, {"files": answers})

    def lfs_batch(self, prefix: str | None, repo_id: str) -> None:
        self._repo("dataset" if prefix else "model", repo_id, write=True)
        objects = []
        for request in self._json()["objects"]:
            answer = {"oid": request["oid"], "size": request["size"]}
            if request["oid"] not in self.hub.stored:
                place = f"{self.hub.storage_url}/storage/{request['oid']}"
                verify = f"{self.hub.url}/storage/{request['oid']}/verify"
                answer["actions"] = {"upload": {"href": place}, "verify": {"href": verify}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        self._refuse_credentials()
        length = int(self.headers["Content-Length"])
        cut = self.hub.cut_here(length)
        if cut is not None:
            self.rfile.read(cut)
            self.close_connection = True
            self.connection.shutdown(2)
            return
        data = self.rfile.read(length)
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusalError(400, "content and hash differ")
        with self.hub.lock:
            self.hub.stored[oid] = data
            self.hub.uploads.append(oid)
        self._send(200)

    def lfs_verify(self, oid: str) -> None:
        self._user(needed=True)
        request = self._json()
        if len(self.hub.stored.get(oid, b"")) != request["size"]:
            raise RefusalError(404, "no such object")
        self._send(200, {})

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(kind, repo_id, write=True)
        if revision not in repo.branches:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header, files = lines[0]["value"], dict(repo.files(revision))
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise RefusalError(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
            else:
                raise RefusalError(400, f"unknown operation {line['key']}")
        for path, blob in files.items():
            if path == "README.md" and check_card(blob.data.decode(), kind):
                raise RefusalError(400, "; ".join(check_card(blob.data.decode(), kind)))
        sha = repo.commit(revision, files, header["summary"])
        prefix = "datasets/" if kind == "dataset" else ""
        self._send(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{prefix}{repo_id}/commit/{sha}"}
        )

    # Downloads

    def resolve(self, prefix: str | None, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo("dataset" if prefix else "model", repo_id)
        sha = self._commit_of(repo, revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound", sha)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            place = f"{self.hub.storage_url}/storage/{blob.sha256}"
            self.hub.stored.setdefault(blob.sha256, blob.data)
            self._send(302, b"", {**headers, "ETag": f'"{blob.git_oid}"', "Location": place})
            return
        self._send_file(blob.data, {**headers, "ETag": f'"{blob.git_oid}"'})

    def lfs_download(self, oid: str) -> None:
        self._refuse_credentials()
        if oid not in self.hub.stored:
            raise RefusalError(404, "no such object")
        self._send_file(self.hub.stored[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _refuse_credentials(self) -> None:
        if self.headers.get("Authorization"):  # signed addresses of a storage answer so
            raise RefusalError(400, "Only one auth mechanism allowed")

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        request = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not request:
            self._send(200, data, headers)
            return
        start, end = int(request[1]), int(request[2] or len(data) - 1)
        if start >= len(data):
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
            return
        end = min(end, len(data) - 1)
        self._send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
