# The smallest function in Python: a server on file descriptor 3 that answers
# each request with "hello". With BENCH_DIAL it connects there, writes one byte
# and waits for the end, which is how the floors measure a start.
import os
import socket

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def serve(conn):
    have = b""
    while True:
        while b"\r\n\r\n" not in have:
            more = conn.recv(32768)
            if not more:
                return
            have += more
        head, _, have = have.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(have) < length:
            more = conn.recv(32768)
            if not more:
                return
            have += more
        have = have[length:]
        conn.sendall(REPLY)


path = os.environ.get("BENCH_DIAL")
if path:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    peer.sendall(b"1")
    peer.recv(1)
else:
    listener = socket.socket(fileno=3)
    while True:
        with listener.accept()[0] as peer:
            serve(peer)
