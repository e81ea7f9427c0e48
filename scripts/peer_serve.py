"""face_recognition behind a minimal server, for scripts/bench_serve.py, in .tools/dlib's Python.

    .tools/dlib/bin/python scripts/peer_serve.py KNOWN PROCESSES

KNOWN has a photo of each person. It prints its port. Each process takes one connection after the
other from a shared socket, because dlib holds Python's lock while it works: threads gain nothing.
"""

import http.server
import io
import json
import os
import sys
from pathlib import Path

import face_recognition

KNOWN = {
    path.stem: face_recognition.face_encodings(face_recognition.load_image_file(path))
    for path in sorted(Path(sys.argv[1]).iterdir())
}
NAMES = [name for name, found in KNOWN.items() if found]
ENCODINGS = [KNOWN[name][0] for name in NAMES]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a form with one photo by the names on it."""

    def do_POST(self) -> None:
        """Recognises every face as the command `face_recognition` does."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        photo = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        faces = []
        for encoding in face_recognition.face_encodings(
            face_recognition.load_image_file(io.BytesIO(photo))
        ):
            distances = face_recognition.face_distance(ENCODINGS, encoding)
            best = int(distances.argmin())
            faces.append(NAMES[best] if distances[best] <= 0.6 else None)
        answer = json.dumps({"faces": faces}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
server.socket.listen(64)
print(server.server_port, flush=True)
for _ in range(int(sys.argv[2]) - 1):
    if os.fork() == 0:
        break
server.serve_forever()
