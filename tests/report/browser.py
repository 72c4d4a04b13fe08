"""A headless Chromium, spoken to over its debugging pipe: a page at a width, its console, keys, and what a script finds on it."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Used as a context manager. complaints: what any page said in its console as an error or warning, and exceptions."""

    def __enter__(self):
        to, self.write = os.pipe()
        self.read, back = os.pipe()
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={self.home.name}"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"],
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: [os.dup2(end, fd) for end, fd in ((to, 3), (back, 4))],  # where Chromium looks for them
            pass_fds=(3, 4),
        )
        os.close(to)
        os.close(back)
        self.answers = os.fdopen(self.read, "rb")
        self.ids, self.complaints, self.loaded, self.session = itertools.count(1), [], False, None
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.answers.close()
        os.close(self.write)
        self.home.cleanup()

    def __call__(self, method, **params):
        sent = next(self.ids)
        message = {"id": sent, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == sent:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has gone"
            text += byte
        message = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        self.loaded |= message.get("method") == "Page.loadEventFired"
        return message

    def open(self, file, width, height=800):
        """The file at a width in pixels, a phone's with touch and its viewport below 600."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.loaded = False
        self("Page.navigate", url=file.resolve().as_uri())
        while not self.loaded:
            self._next()

    def ask(self, script):
        """What an expression comes to, a promise's value too."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9, "Enter": 13}.get(key, 0))

    def point(self, x, y):
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
