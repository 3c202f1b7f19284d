"""A Hub on the loopback interface for the tests: the part of the HTTP interface that huggingface_hub talks to.

Standard library only; everything lives in memory. One commit is one full snapshot of a repository.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_local_test_token"


@dataclass
class Repo:
    """A repository: its commits (sha -> path -> content), its branches beside main, and whom it is closed to."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    branches: dict[str, str] = field(default_factory=dict)
    lfs_paths: set[str] = field(default_factory=set)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode())
        for path in sorted(files):
            digest.update(files[path])
        sha = digest.hexdigest()
        self.commits[sha] = files
        if branch == "main":
            self.head = sha
        else:
            self.branches[branch] = sha
        return sha


class LocalHub:
    """Runs the server in a thread: `with LocalHub() as hub: hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploads_to_cut = 0  # so many uploads end in the middle, with a closed connection
        self.uploads_before_stop: int | None = None  # after so many, uploads get no answer until the server ends
        self.stopped = threading.Event()  # an upload waits
        self.ended = threading.Event()
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    # --- plumbing

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        headers.setdefault("Content_Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), **headers)

    def _missing(self, code: str, status: int = 404) -> None:
        self._refused(code, status, code)

    def _refused(self, code: str, status: int, message: str) -> None:
        self._json({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    @property
    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def _wrong_token(self) -> bool:
        return "Authorization" in self.headers and not self._authorised

    def _cut(self) -> bool:
        """Whether this upload ends in the middle."""
        if self.command != "PUT":
            return False
        with self.hub.lock:
            left = self.hub.uploads_before_stop
            if left:
                self.hub.uploads_before_stop = left - 1
            if left != 0 and not self.hub.uploads_to_cut:
                return False
            if left != 0:
                self.hub.uploads_to_cut -= 1
            self.hub.requests.append(f"CUT {self.path}")
        if left == 0:
            self.hub.stopped.set()
            self.hub.ended.wait()
            self.close_connection = True
            return True
        self.rfile.read(1)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def _route(self, method: str) -> None:
        if self._cut():
            return
        body = self._body() if method in ("POST", "PUT", "DELETE") else b""
        url = urlparse(self.path)
        path = unquote(url.path)
        with self.hub.lock:
            self.hub.requests.append(f"{method} {path}")
            if self._wrong_token:
                return self._refused("", 401, "Invalid credentials in Authorization header")
            if path == "/api/whoami-v2":
                return (
                    self._json({"name": "user", "type": "user", "auth": {}})
                    if self._authorised
                    else self._missing("", 401)
                )
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            if match := re.fullmatch(r"/lfs/([0-9a-f]+)", path):
                if method == "PUT":
                    self.hub.lfs[match[1]] = body
                return self._send(200)
            if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                return self._lfs_batch(json.loads(body))
            if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", path):
                return self._api(method, match[1], match[2], match[3] or "", body, parse_qs(url.query))
            if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._resolve(match[1] or "models", match[2], match[3], match[4])
        self._missing("EntryNotFound")

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, or None after an answer that says why not."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self._authorised):
            self._missing("RepoNotFound", 404 if self._authorised else 401)
            return None
        if repo.gated:
            self._missing("GatedRepo", 403 if self._authorised else 401)
            return None
        return repo

    # --- endpoints

    def _create(self, asked: dict) -> None:
        if not self._authorised:
            return self._missing("", 401)
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if (kind, name) in self.hub.repos:
            return self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
        repo = self.hub.repos[kind, name] = Repo(
            private=bool(asked.get("private")) or asked.get("visibility") == "private"
        )
        repo.commit({})
        prefix = "" if kind == "models" else f"{kind}/"
        self._json({"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": name})

    def _api(self, method: str, kind: str, name: str, rest: str, body: bytes, query: dict) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        if rest.startswith(("preupload/", "commit/", "branch/")) and not self._authorised:
            return self._missing("", 401)
        if rest.startswith("preupload/"):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".parquet", ".bin")) else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self._json({"files": modes})
        if rest.startswith("commit/"):
            return self._commit(repo, name, rest.removeprefix("commit/"), body)
        if rest.startswith("branch/"):
            branch = rest.removeprefix("branch/")
            known = branch in repo.branches
            repo.branches.setdefault(branch, repo.head)
            return self._json({"error": "exists"}, 409) if known else self._json({})
        if rest == "" or rest.startswith("revision/"):
            sha = self._sha(repo, rest.removeprefix("revision/") or "main")
            if sha is None:
                return self._missing("RevisionNotFound")
            siblings = [{"rfilename": p, "size": len(c)} for p, c in sorted(repo.commits[sha].items())]
            return self._json(
                {
                    "id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": [],
                    "downloads": 0, "likes": 0, "disabled": False, "gated": False, "lastModified": "2026-01-01T00:00:00.000Z",
                }
            )  # fmt: skip
        if match := re.fullmatch(r"tree/([^/]+)/?(.*)", rest):
            sha = self._sha(repo, match[1])
            if sha is None:
                return self._missing("RevisionNotFound")
            return self._tree(
                repo, sha, match[2], recursive=query.get("recursive", ["false"])[0].lower() in ("true", "1")
            )
        if match := re.fullmatch(r"paths-info/(.+)", rest):
            sha = self._sha(repo, match[1])
            wanted = (
                json.loads(body).get("paths", []) if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            )
            files = repo.commits.get(sha or "", {})
            return self._json([self._entry(repo, p, files[p]) for p in wanted if p in files])
        self._missing("EntryNotFound")

    def _sha(self, repo: Repo, revision: str) -> str | None:
        revision = unquote(revision)
        return (
            repo.head
            if revision in ("main", "HEAD", "refs/heads/main")
            else revision
            if revision in repo.commits
            else repo.branches.get(revision)
        )

    def _tree(self, repo: Repo, sha: str, folder: str, *, recursive: bool) -> None:
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries, folders = [], set()
        for path, content in sorted(repo.commits[sha].items()):
            if not path.startswith(prefix):
                continue
            inner = path[len(prefix) :]
            for depth in range(1, inner.count("/") + 1):
                folders.add(prefix + "/".join(inner.split("/")[:depth]))
            if recursive or "/" not in inner:
                entries.append(self._entry(repo, path, content))
        if prefix and not entries and not folders:
            return self._missing("EntryNotFound")
        kept = [f for f in sorted(folders) if recursive or "/" not in f[len(prefix) :]]
        self._json(entries + [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in kept])

    def _entry(self, repo: Repo, path: str, content: bytes) -> dict:
        entry: dict = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path in repo.lfs_paths:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def _lfs_batch(self, asked: dict) -> None:
        objects = []
        for item in asked["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def _commit(self, repo: Repo, name: str, branch: str, body: bytes) -> None:
        files = dict(repo.commits[self._sha(repo, branch) or repo.head])
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
                repo.lfs_paths.add(value["path"])
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repo.commit(files, branch)
        self._json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""}
        )

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        sha = self._sha(repo, revision)
        if sha is None:
            return self._missing("RevisionNotFound")
        content = repo.commits[sha].get(path)
        if content is None:
            return self._missing("EntryNotFound")
        lfs = path in repo.lfs_paths
        etag = (hashlib.sha256 if lfs else hashlib.sha1)(content).hexdigest()
        headers = {"X_Repo_Commit": sha, "ETag": f'"{etag}"', "Accept_Ranges": "bytes"}
        if lfs:
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            part = content[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            return self._send(206, part, "application/octet-stream", **headers)
        self._send(200, content, "application/octet-stream", **headers)
