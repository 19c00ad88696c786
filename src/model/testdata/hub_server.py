"""A model hub on loopback for tests, in Hugging Face's HTTP layout.

    hub_server.py FOLDER

FOLDER/repos/OWNER/NAME/* are the repositories. The port goes to FOLDER/port, one line a request to FOLDER/log.
A file whose name holds "safetensors" or "gguf" is large: its address redirects to another host name, with its
SHA-256 and size in X-Linked headers; the others come at once, with the git blob's SHA-1 as ETag.
FOLDER/faults is read at each request, one word a line:
    cut N         close the connection after N bytes of a large file
    no_range      ignore Range
    flip          damage the first byte of a large file
    busy N        answer 503 to the next N requests for large files
    endless       send more of a large file than it has
    to ADDRESS    redirect large files to ADDRESS
    list WORD     answer WORD instead of a repository's list of files
Repositories under "private/" want "Authorization: Bearer secret".
"""
import hashlib
import http.server
import json
import os
import sys
import urllib.parse

root = sys.argv[1]
commit = "0123456789abcdef0123456789abcdef01234567"
busy_left = {}


def faults():
    try:
        with open(root + "/faults") as file:
            return dict((line.split() + ["1"])[:2] for line in file if line.strip())
    except FileNotFoundError:
        return {}


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(self.path)
        with open(root + "/log", "a") as log:
            log.write("%s %s %s range=%s authorization=%s\n" % (
                self.command, self.headers["Host"].split(":")[0], path, self.headers.get("Range", "-"),
                self.headers.get("Authorization", "-")))
        parts = path.strip("/").split("/")
        if path.startswith("/cdn/"):
            return self.large(root + "/repos/" + "/".join(parts[1:]))
        private = "private" in parts
        if private and self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401)
        if path.startswith("/api/models/"):
            folder = root + "/repos/" + "/".join(parts[2:4])
            if not os.path.isdir(folder) or parts[4:] not in ([], ["revision", "main"], ["revision", commit]):
                return self.answer(404)
            files = sorted(os.path.relpath(os.path.join(at, name), folder)
                           for at, _, names in os.walk(folder) for name in names)
            if "list" in faults():
                return self.answer(200, body=faults()["list"].encode())
            return self.answer(200, body=json.dumps(
                {"id": "/".join(parts[2:4]), "sha": commit, "siblings": [{"rfilename": f} for f in files]}).encode())
        if len(parts) < 5 or parts[2] != "resolve" or parts[3] != commit:
            return self.answer(404)
        file = root + "/repos/" + "/".join(parts[:2] + parts[4:])
        if not os.path.isfile(file):
            return self.answer(404)
        with open(file, "rb") as f:
            content = f.read()
        if "safetensors" in parts[-1] or "gguf" in parts[-1]:
            place = "http://localhost:%d/cdn/%s" % (
                self.server.server_port, urllib.parse.quote("/".join(parts[:2] + parts[4:])))
            return self.answer(302, [
                ("Location", faults().get("to", place)),
                ("X-Linked-Etag", '"%s"' % hashlib.sha256(content).hexdigest()),
                ("X-Linked-Size", str(len(content))), ("X-Repo-Commit", commit)])
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.answer(200, [("ETag", '"%s"' % sha1), ("Content-Length", str(len(content)))], content)

    def large(self, file):
        now = faults()
        if "busy" in now:
            left = busy_left.setdefault(now["busy"], int(now["busy"]))
            if left > 0:
                busy_left[now["busy"]] = left - 1
                return self.answer(503)
        with open(file, "rb") as f:
            content = f.read()
        size = len(content)
        if "endless" in now:
            content += bytes(4 * size)
            size = len(content)
        if "flip" in now:
            content = bytes([content[0] ^ 1]) + content[1:]
        begin, status, headers = 0, 200, []
        if self.headers.get("Range") and "no_range" not in now:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= size:
                return self.answer(416)
            status, headers = 206, [("Content-Range", "bytes %d-%d/%d" % (begin, size - 1, size))]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "cut" in now and size - begin > int(now["cut"]):
            self.wfile.write(content[begin:begin + int(now["cut"])])
            self.close_connection = True
            return
        self.wfile.write(content[begin:])


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
with open(root + "/port.new", "w") as port_file:
    port_file.write(str(server.server_port))
os.rename(root + "/port.new", root + "/port")
server.serve_forever()
