"""A stand-in for Google Cloud Storage on loopback: as much of its JSON API as gcsfs needs, objects in memory."""

import base64
import hashlib
import itertools
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlsplit

import gcsfs

from .loopback import Loopback, Quiet

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class Storage(Loopback):
    """Keeps `objects`, (bucket, key) -> bytes, of the one bucket `mine`.

    `refuse(method, key)` gives a status to fail with, 0 for none; methods are GET, LIST, WRITE and DELETE.
    `environment` is what makes gcsfs come here.
    """

    def __init__(self):
        self.objects, self.refuse, self.lock = {}, lambda method, key: 0, threading.Lock()
        self.uploads, self.numbers = {}, itertools.count(1)
        super().__init__(_Handler)
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",  # there is nobody to log in to
        }

    def names(self, prefix=""):
        """List the objects, without their bucket."""
        return sorted(key for _, key in list(self.objects) if key.startswith(prefix))

    @classmethod
    def connected(cls, monkeypatch):
        """Start one that gcsfs comes to."""
        server = cls()
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        return server


class _Handler(Quiet):
    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.server.lock:
            self._answer(*self._serve(url.path, query, body))

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _serve(self, path, query, body):
        objects = self.server.objects
        if found := COPY.fullmatch(path):
            bucket, key, to, target = map(unquote, found.groups())
            objects[to, target] = objects[bucket, key]
            return 200, {"done": True, "resource": described(to, target, objects[to, target])}
        if found := OBJECT.fullmatch(path):
            name = tuple(map(unquote, found.groups()))
            if status := self.server.refuse(self.command, name[1]):
                return status, {"error": {"code": status, "message": "it was told to"}}
            if name not in objects:
                return 404, {"error": {"code": 404, "message": "no such object"}}
            if self.command == "DELETE":
                del objects[name]
                return 204, b""
            return self._part(objects[name]) if query.get("alt") == "media" else (200, described(*name, objects[name]))
        if found := LIST.fullmatch(path):
            return self._listed(unquote(found[1]), query)
        if found := UPLOAD.fullmatch(path):
            return self._upload(unquote(found[1]), query, body)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            return (200, {"name": found[1]}) if found[1] == "mine" else (404, {"error": {"code": 404}})
        return 501, {"error": {"code": 501, "message": path}}

    def _part(self, data):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 200, data
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        return 206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def _listed(self, bucket, query):
        if bucket != "mine":
            return 404, {"error": {"code": 404, "message": "no such bucket"}}
        if status := self.server.refuse("LIST", query.get("prefix", "")):
            return status, {"error": {"code": status, "message": "it was told to"}}
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for (of, key), data in sorted(self.server.objects.items()):
            if of != bucket or not key.startswith(prefix):
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if mark:
                folders.add(prefix + head + mark)
            else:
                items.append(described(of, key, data))
        return 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _upload(self, bucket, query, body):
        if query.get("upload_id"):
            key, parts = self.server.uploads[query["upload_id"]]
            if self.command == "DELETE":
                return 204, b""
            parts.append(body)
            asked = self.headers.get("Content-Range") or "bytes */0"
            sent, total = re.fullmatch(r"bytes (?:\d+-(\d+)|\*)/(\d+|\*)", asked).groups()
            if total == "*" or int(sent or -1) + 1 < int(total):
                return 308, b"", {"Range": f"bytes=0-{sum(map(len, parts)) - 1}"}
            return self._store(bucket, key, b"".join(parts))
        if query["uploadType"] == "multipart":
            boundary = b"--" + re.search(r'boundary="?([^"]+)"?', self.headers["Content-Type"])[1].encode()
            told, data = (part.partition(b"\n\n")[2] for part in body.split(b"\n" + boundary)[0:2])
            return self._store(bucket, json.loads(told)["name"], data)
        if query["uploadType"] == "media":
            return self._store(bucket, query["name"], body)
        number = str(next(self.server.numbers))
        self.server.uploads[number] = query["name"], []
        location = f"{self.server.environment['STORAGE_EMULATOR_HOST']}{urlsplit(self.path).path}?upload_id={number}"
        return 200, b"", {"Location": location}

    def _store(self, bucket, key, data):
        status = self.server.refuse("WRITE", key) or (0 if bucket == "mine" else 404)
        if status:
            return status, {"error": {"code": status, "message": "it was told to"}}
        self.server.objects[bucket, key] = data
        return 200, described(bucket, key, data)

    def _answer(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


def described(bucket, key, data):
    """Describe an object as the API does."""
    digest = hashlib.md5(data).digest()
    return {
        "kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(data)), "etag": digest.hex(),
        "md5Hash": base64.b64encode(digest).decode(), "generation": str(int.from_bytes(digest[:6], "big")),
        "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
