"""A stand-in for the Hugging Face hub on loopback: accounts, repositories of models, commits."""

import base64
import hashlib
import json
from urllib.parse import unquote

from .loopback import Loopback, Quiet

ORGANISATIONS = {"lab": "write", "club": "read"}
ME = {"type": "user", "name": "me", "orgs": [{"name": name, "roleInOrg": role} for name, role in ORGANISATIONS.items()]}


class Hub(Loopback):
    """Serves `repositories`, by OWNER/NAME a list of commits {path: bytes}, to whom has the token of `roles`.

    A commit has the name `oid(number)`, and a repository is private if it is in `private`. `status`, if it is set,
    answers all that writes. `seen` records (method, path, Authorization).
    """

    def __init__(self):
        self.roles, self.repositories, self.private, self.seen, self.status = {}, {}, set(), [], 0
        super().__init__(_Handler)

    def put(self, name, files):
        """Add a commit that adds or replaces files."""
        commits = self.repositories.setdefault(name, [])
        commits.append((commits[-1] if commits else {}) | files)

    @staticmethod
    def oid(number):
        return f"{number:040x}"


class _Handler(Quiet):
    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def _answer(self, method):
        hub, path = self.server, unquote(self.path.partition("?")[0]).strip("/")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hub.seen.append((method, path, token))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer, code = self._of(method, path.split("/"), body, hub.roles.get(token))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "ETag": f'"{hash(data)}"', "X-Error-Code": code}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _of(self, method, parts, body, role):
        hub, missing = self.server, (404, {"error": "none"}, "RepoNotFound")
        if parts == ["api", "whoami-v2"]:
            return (200, ME | {"auth": {"accessToken": {"role": role}}}, "") if role else (401, {"error": "who"}, "")
        if method == "POST" and hub.status:
            return hub.status, {"error": "no"}, ""
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            hub.private |= {name} if wanted.get("visibility") == "private" or wanted.get("private") else set()
            hub.put(name, {".gitattributes": b""})
            return 200, {"url": f"{hub.url}/{name}"}, ""
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, ""
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        commits = hub.repositories.get(name)
        if commits is None or (name in hub.private and not role):
            return missing
        if not rest or rest[0] == "revision":
            facts = {"id": name, "sha": hub.oid(len(commits)), "private": name in hub.private}
            return 200, facts | {"tags": [], "siblings": []}, ""
        if rest[0] == "auth-check":
            return (200, {}, "") if role == "write" else (403, {"error": "no"}, "")
        number = len(commits) if rest[1] == "main" else int(rest[1], 16)
        files = commits[number - 1]
        if rest[0] == "tree":
            return 200, [{"type": "file", "path": each} for each in files], ""
        if rest[0] == "resolve":
            found = files.get("/".join(rest[2:]))
            return (404, {"error": "none"}, "EntryNotFound") if found is None else (200, found, "")
        if rest[0] == "preupload":
            asked = [each["path"] for each in json.loads(body)["files"]]
            oids = {each: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for each, data in files.items()}
            facts = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": each, "oid": oids.get(each), **facts} for each in asked]}, ""
        lines = [json.loads(line) for line in body.splitlines()]
        added = {each["value"]["path"]: each["value"]["content"] for each in lines if each["key"] == "file"}
        hub.put(name, {each: base64.b64decode(content) for each, content in added.items()})
        oid = hub.oid(len(commits))
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"}, ""
