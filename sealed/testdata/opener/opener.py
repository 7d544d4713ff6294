#!/usr/bin/env python3
"""An opener of faasd-sec's sealed envelope, written from docs/envelope.md alone.

    opener.py VECTORS.json    opens every vector; prints "N passed, N failed"; status 1 if any failed

It shows that the document suffices, and gives the implementation something to disagree with. It is
no way to open real envelopes: it is slow, takes time that depends on secrets, wipes nothing, and has
no clock, no spool and no bounds on what it remembers.
"""

import hmac
import json
import sys
from struct import unpack

import gm
import strict

SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d034200")
NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789.-")
QUEUED, KNOWN_FLAGS = 2, 3
MAX_RECORD, MAX_RECORDS = 65_536, 1 << 24
HOUR_S, LIFE_MS, DAY_MS, SKEW_MS = 3_600, 300_000, 86_400_000, 30_000


class Refused(Exception):
    """The envelope is refused; the argument is the code."""


def require(ok, code):
    if not ok:
        raise Refused(code)


def fingerprint(point):
    return gm.sm3(SPKI + point)


class Body:
    """A transport body, read in chunks of whatever size."""

    def __init__(self, data, chunk):
        self.chunks = (data[at:at + chunk] for at in range(0, len(data), chunk))
        self.buffer = b""

    def up_to(self, n):
        """The next n bytes, or fewer where the body ends."""
        while len(self.buffer) < n:
            more = next(self.chunks, b"")
            if not more:
                break
            self.buffer += more
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def take(self, n):
        out = self.up_to(n)
        require(len(out) == n, "truncated")
        return out

    def take_number(self, size, into):
        into.append(self.take(size))
        return int.from_bytes(into[-1], "big")


class Grant:
    """The layout of a grant, whatever its values."""

    def __init__(self, body):
        magic = body.up_to(4)
        require(b"FSG1".startswith(magic), "format")
        require(len(magic) == 4, "truncated")
        raw = [magic, body.take(197)]
        (self.suite, self.role, self.recipient, self.sender_pub, self.reply_pub, self.context,
         self.not_before, self.not_after) = unpack(">HB16s65s65s32sQQ", raw[1])
        raw.append(body.take(body.take_number(1, raw)))
        self.name = raw[-1]
        raw.append(body.take(body.take_number(2, raw)))
        self.enc = raw[-1]
        self.signed = b"".join(raw)
        raw.append(body.take(body.take_number(1, raw)))
        self.sig = raw[-1]
        self.raw = b"".join(raw)
        self.digest = gm.sm3(self.raw)


class Message:
    """The message header, whatever its values."""

    def __init__(self, body):
        raw = body.take(125)
        (self.magic, self.id, self.issued, self.expires, self.flags, _, self.grant,
         self.commit) = unpack(">4s16sQQB24s32s32s", raw)
        self.before_commit = raw[:93]


class Opener:
    """One reader: a decryption key that is live forever, its replay set and the state of one request."""

    def __init__(self, scalar, public, now_ms, link=b""):
        self.scalar, self.public = int.from_bytes(scalar, "big"), public
        self.now_ms, self.link = now_ms, link
        self.seen = {}  # (grant, id) -> expires
        self.replied = False

    def open(self, sealed, expect, chunk):
        """The plaintext of sealed; raises Refused with the code. expect as in the document."""
        body = Body(sealed, chunk)
        grant, message = Grant(body), Message(body)
        self.check_format(grant, message, expect)
        require(grant.recipient == fingerprint(self.public)[:16], "unknown_key")
        require(grant.name == expect.get("name", grant.name), "wrong_function")
        require(grant.context == expect.get("context", grant.context), "stale_revision")
        self.check_window(grant, message, expect.get("max_queued_ms", 0))
        self.check_signature(grant)
        sender = fingerprint(grant.sender_pub)
        require(sender == expect.get("sender", sender), "sender")
        key, nonce = self.derive(grant, message)
        self.check_replay(grant, message)
        return self.read_records(grant.role, body, gm.GCM(key), int.from_bytes(nonce, "big"))

    def check_format(self, g, m, expect):
        require(m.magic == b"FSM1" and g.suite == 1, "format")
        require(1 <= g.role <= 7 and g.role == expect.get("role", g.role), "format")
        require(gm.parse_point(g.sender_pub) is not None, "format")
        if any(g.reply_pub):
            require(g.role == 1 and g.reply_pub != g.sender_pub, "format")
            require(gm.parse_point(g.reply_pub) is not None, "format")
        require(g.role not in (4, 5) or not any(g.context), "format")
        require(NAME_BYTES.issuperset(g.name) and g.name.count(b".") == 1, "format")
        require(m.flags & ~(KNOWN_FLAGS if g.role == 1 else 0) == 0, "format")
        require(m.grant == g.digest, "format")
        require(len(self.link) == (32 if g.role == 2 else 0), "format")
        require(g.role != 2 or m.id == expect.get("id", m.id), "format")

    def check_window(self, g, m, max_queued_ms):
        require(g.not_before <= g.not_after, "window")
        require(g.role in (3, 7) or g.not_after - g.not_before <= HOUR_S, "window")
        require(g.not_before * 1000 <= m.issued <= g.not_after * 1000, "window")
        require(m.issued <= m.expires, "window")
        queued = m.flags & QUEUED
        require(not queued or max_queued_ms > 0, "window")
        require(m.expires - m.issued <= (min(max_queued_ms, DAY_MS) if queued else LIFE_MS), "window")
        if g.role in (1, 4, 5, 6):
            require(m.issued <= self.now_ms + SKEW_MS and self.now_ms <= m.expires, "window")

    def check_signature(self, g):
        try:
            r, s = strict.der_signature(g.sig)
        except ValueError:
            raise Refused("signature") from None
        signed = b"faasd-sec/v1 grant\0" + g.signed
        require(gm.sm2_verify(gm.parse_point(g.sender_pub), signed, r, s), "signature")

    def derive(self, g, m):
        """The key and the nonce; the commitment is checked."""
        try:
            seed = gm.sm2_decrypt(self.scalar, *strict.der_encryption(g.enc))
        except ValueError:
            raise Refused("commitment") from None
        require(seed is not None, "commitment")
        salt = b"faasd-sec/v1 prk\0" + gm.sm3(g.raw + self.public)
        prk = gm.hkdf_extract(salt, seed + self.link)
        okm = gm.hkdf_expand(prk, b"faasd-sec/v1 msg\0" + m.before_commit, 92)
        require(hmac.compare_digest(okm[28:60], m.commit), "commitment")
        return okm[:16], okm[16:28]

    def check_replay(self, g, m):
        if g.role in (1, 5, 6):
            self.seen = {k: until for k, until in self.seen.items() if self.now_ms <= until}
            require((g.digest, m.id) not in self.seen, "replay")
            self.seen[g.digest, m.id] = m.expires
        elif g.role == 2:
            require(not self.replied, "replay")
            self.replied = True

    def read_records(self, role, body, gcm, nonce):
        plaintext, final = [], 0
        while not final:
            header = body.take(4)
            n = int.from_bytes(header, "big")
            final, n = n >> 31, n & 0x7FFFFFFF
            i = len(plaintext)
            require(i < MAX_RECORDS and (0 if final else 1) <= n <= MAX_RECORD, "record")
            record = gcm.open((nonce ^ i).to_bytes(12, "big"), header, body.take(n + 16))
            require(record is not None, "record")
            if final:
                require(not body.up_to(1), "truncated")
            if i == 0 and role in (1, 2):
                try:
                    strict.check_head(role, record)
                except ValueError:
                    raise Refused("format") from None
            plaintext.append(record)
        return b"".join(plaintext)


def outcome(vector, chunk):
    """The plaintext in hex, or the code."""
    given = {key: vector[key] for key in ("recipient_private", "recipient_public", "link", "sealed")}
    given = {key: bytes.fromhex(value) for key, value in given.items()}
    expect = dict(vector.get("expect", {}))
    for key in ("context", "sender", "id"):
        if key in expect:
            expect[key] = bytes.fromhex(expect[key])
    if "name" in expect:
        expect["name"] = expect["name"].encode("ascii")
    scalar = int.from_bytes(given["recipient_private"], "big")
    if gm.affine(gm.multiply(scalar, gm.G)) != gm.parse_point(given["recipient_public"]):
        raise ValueError(f"{vector['name']}: recipient_public is not recipient_private's")
    opener = Opener(given["recipient_private"], given["recipient_public"], vector["now_ms"], given["link"])
    if expect.get("repeat"):
        try:
            opener.open(given["sealed"], expect, chunk)
        except Refused as refused:
            return f"{refused} at the first opening"
    try:
        return opener.open(given["sealed"], expect, chunk).hex()
    except Refused as refused:
        return str(refused)


def main(path):
    gm.self_test()
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    failed = 0
    for vector in vectors:
        if ("plaintext" in vector) == ("error" in vector):
            raise ValueError(f"{vector['name']}: exactly one of plaintext and error")
        want = vector["error"] if "error" in vector else vector["plaintext"]
        for how, chunk in (("at once", 1 << 30), ("byte by byte", 1)):
            got = outcome(vector, chunk)
            if got != want:
                failed += 1
                print(f"{vector['name']}, {how}: got {got[:80]}, want {want[:80]}")
                break
    print(f"{len(vectors) - failed} passed, {failed} failed")
    return 1 if failed or not vectors else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: opener.py VECTORS.json")
    sys.exit(main(sys.argv[1]))
