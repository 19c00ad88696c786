"""A Google Cloud Storage server (gcp-storage-emulator) with one bucket, in memory.

gcs_server.py OUTPUT writes {"url"} to OUTPUT when it is ready and serves until it is killed.
"""
import http.server
import json
import os
import socket
import sys
import time

from gcp_storage_emulator.server import create_server

# One request at a time is not how the service answers: a client that opens a file and reads elsewhere in it holds two
# downloads, of which the emulator's own server would finish the first before it looks at the second.
http.server.HTTPServer = http.server.ThreadingHTTPServer
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = create_server("127.0.0.1", port, in_memory=True, default_bucket="corpus")
server.start()
with open(sys.argv[1] + ".new", "w") as out:
    json.dump({"url": "http://127.0.0.1:%d" % port}, out)
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    time.sleep(60)
