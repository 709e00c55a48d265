"""The painter (`semseg-diffusers app`): masks painted in the browser, photos drawn from them, a growing data set."""
