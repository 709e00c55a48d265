"""The painter (`semseg-diffusers app`): masks painted in the browser, images generated from them, and kept."""
