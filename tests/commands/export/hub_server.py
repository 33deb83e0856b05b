"""Stub of the Hugging Face Hub: the part of its HTTP API that creates, fills and reads a repository."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_of_the_test"


class Hub:
    """State of the server."""

    def __init__(self):
        self.repositories, self.objects, self.requests = {}, {}, []
        """Repository name to privacy and files (name to content); SHA-256 to uploaded content; (method, path) of every
        request."""
        self.url, self.takes_commits = "", True

    def commit_id(self, repository):
        return hashlib.sha1(repr(sorted(self.repositories[repository]["files"].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, content=b"", code=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self):
        """Read a request and return its body, or answer it and return None if its token is wrong."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        self.server.hub.requests.append((self.command, self.path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not self.path.startswith("/objects/"):
            self.answer({"error": "Invalid user token."}, 401, X_Error_Message="Invalid user token.")
            return None
        return body

    def do_POST(self):
        body, hub = self.begin(), self.server.hub
        if body is None:
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
            is_new = repository not in hub.repositories
            visibility = asked.get("private") or asked.get("visibility") == "private"
            hub.repositories.setdefault(repository, {"private": visibility, "files": {}})
            self.answer({"url": f"{hub.url}/{repository}"}, 200 if is_new else 409)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [
                (file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular")
                for file in json.loads(body)["files"]
            ]
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}}} for one in asked]
            self.answer({"transfer": "basic", "objects": upload})
        elif "/commit/" in self.path and hub.takes_commits:
            repository = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                value, files = line["value"], hub.repositories[repository]["files"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            oid = hub.commit_id(repository)
            self.answer({"commitUrl": f"{hub.url}/{repository}/commit/{oid}", "commitOid": oid})
        else:
            self.answer({"error": "not known"}, 404)

    def do_PUT(self):
        body, oid = self.begin(), self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.hub.objects[oid] = body
        self.answer()

    def do_GET(self):
        hub = self.server.hub
        if self.begin() is None:
            return
        parts = self.path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repositories:
            repository = "/".join(parts[2:4])
            stored = hub.repositories[repository]
            files = [{"rfilename": name} for name in stored["files"]]
            about = {"sha": hub.commit_id(repository), "private": stored["private"], "siblings": files}
            self.answer({"id": repository} | about)
            return
        repository, name = "/".join(parts[:2]), parts[-1]
        files = hub.repositories.get(repository, {"files": {}})["files"]
        if name not in files:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            return
        oid = hashlib.sha256(files[name]).hexdigest()
        headers = {"ETag": f'"{oid}"', "X_Repo_Commit": hub.commit_id(repository), "Accept_Ranges": "bytes"}
        self.answer(files[name], **headers)

    do_HEAD = do_GET


@contextmanager
def hub_server():
    """Serve an empty hub on this machine; return the `Hub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    server.hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
