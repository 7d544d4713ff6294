"""Scores loan applications with a secret model.

Code and weights are the sealed bundle: neither the registry nor the operator
of the cluster ever has them in clear. The image is a plain Python.
"""

import http.server
import json
import math
import os
import socket
import socketserver

HERE = os.path.dirname(os.path.abspath(__file__))
MAX_BODY = 1 << 20


class Model:
    """A logistic regression over standardised features."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            raw = json.load(f)
        self.intercept = float(raw["intercept"])
        self.features = raw["features"]

    def score(self, applicant):
        total, reasons = self.intercept, []
        for name, f in self.features.items():
            value = applicant.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name}: want a finite number")
            part = f["weight"] * (value - f["mean"]) / f["scale"]
            reasons.append((part, name))
            total += part
        total = max(-700.0, min(700.0, total))
        reasons.sort(reverse=True)
        return 1 / (1 + math.exp(-total)), [name for part, name in reasons if part > 0][:2]


MODEL = Model(os.path.join(HERE, "weights.json"))
DECLINE_ABOVE = float(os.environ.get("DECLINE_ABOVE", "0.5"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or -1)
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            return self.answer(413, {"error": f"send a JSON object of at most {MAX_BODY} bytes"})
        try:
            applicant = json.loads(self.rfile.read(length))
            if not isinstance(applicant, dict):
                raise ValueError("want a JSON object")
            risk, reasons = MODEL.score(applicant)
        except ValueError as e:
            return self.answer(400, {"error": str(e)})
        self.answer(200, {"risk": round(risk, 4), "decline": risk > DECLINE_ABOVE, "raised_by": reasons})

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "caller"  # a peer of a unix socket has no address

    def log_message(self, *args):
        pass  # a line per request would tell the log who asks how often


class Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves on a socket that listens already."""

    daemon_threads = True

    def __init__(self, sock):
        super().__init__("sealed", Handler)
        self.socket = sock

    def fileno(self):
        return self.socket.fileno()

    def get_request(self):
        return self.socket.accept()

    def shutdown_request(self, request):
        request.close()


def listen():
    fd = os.environ.get("FAASD_SEC_LISTEN_FD")
    if fd:
        return socket.socket(fileno=int(fd))
    return socket.create_server(("", 8080))


if __name__ == "__main__":
    print("model with", len(MODEL.features), "features is ready", flush=True)
    Server(listen()).serve_forever()
