#!/usr/bin/env python3
"""A reader of faasd-sec's traffic statements, by docs/envelope.md.

    traffic.py TRAFFIC.json    reads the statement, as it is and changed; prints "N passed, N failed"

It verifies the signature, every field and the time, and says which share a call is in.
"""

import json
import re
import sys

import gm
import strict
from opener import fingerprint

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
WEEK_S, LEAD_S = 604_800, 30


def require(ok, what):
    if not ok:
        raise ValueError(what)


def read(container, owner):
    """The fields of a statement that the owner with this fingerprint signed."""
    require(container[:4] == b"FST1", "magic")
    size = int.from_bytes(container[4:8], "big")
    require(1 <= size <= 1024 and 8 + size + 66 <= len(container), "payload_len")
    payload, rest = container[8:8 + size], container[8 + size:]
    public, sig = rest[:65], rest[66:]
    require(rest[65] == len(sig), "sig_len")
    point = gm.parse_point(public)
    require(point is not None and fingerprint(public) == owner, "owner")
    r, s = strict.der_signature(sig)
    signed = container[:8 + size + 65]
    require(gm.sm2_verify(point, b"faasd-sec/v1 traffic\0" + signed, r, s), "signature")
    return fields(strict.CBOR(payload))


def fields(cbor):
    keys = cbor.keys(7)
    out = {}
    next(keys)
    require(cbor.argument(strict.UINT) == 1, "version")
    for name in ("name", "namespace"):
        next(keys)
        out[name] = cbor.text()
        require(LABEL.fullmatch(out[name]), name)
    for name in ("sequence", "issued", "expires"):
        next(keys)
        out[name] = cbor.argument(strict.UINT)
    require(0 < out["expires"] - out["issued"] <= WEEK_S, "expires")
    next(keys)
    count = cbor.argument(strict.ARRAY)
    require(1 <= count <= 4, "number of shares")
    shares = out["shares"] = []
    for _ in range(count):
        inner = cbor.keys(3)
        next(inner)
        revision = cbor.bytes()
        next(inner)
        sequence = cbor.argument(strict.UINT)
        next(inner)
        percent = cbor.argument(strict.UINT)
        require(next(inner, None) is None, "keys")
        require(len(revision) == 32 and any(revision) and all(revision != s[0] for s in shares), "revision")
        require(sequence > (shares[-1][1] if shares else 0), "descriptor's sequence")
        require(percent <= 100, "percent")
        shares.append((revision, sequence, percent))
    require(next(keys, None) is None, "keys")
    cbor.end()
    require(sum(s[2] for s in shares) == 100, "sum of percents")
    require(out["sequence"] > shares[-1][1], "sequence")
    return out


def live(statement, now):
    return statement["issued"] - LEAD_S <= now < statement["expires"]


def slot(call):
    mask = (1 << 64) - 1
    h = 0xCBF29CE484222325
    for byte in call.encode():
        h = (h ^ byte) * 0x100000001B3 & mask
    h ^= h >> 30
    h = h * 0xBF58476D1CE4E5B9 & mask
    h ^= h >> 27
    h = h * 0x94D049BB133111EB & mask
    h ^= h >> 31
    return h % 100


def share(statement, call):
    """The index of the share that a call is in."""
    total, at = 0, slot(call)
    for i, s in enumerate(statement["shares"]):
        total += s[2]
        if total > at:
            return i
    raise AssertionError("the percents are not 100")


def refused(container, owner):
    try:
        read(container, owner)
    except (ValueError, IndexError):
        return True
    return False


def main(path):
    with open(path, encoding="utf-8") as f:
        vector = json.load(f)
    container, owner = bytes.fromhex(vector["signed"]), bytes.fromhex(vector["owner"])
    passed = failed = 0

    def check(ok, what):
        nonlocal passed, failed
        passed, failed = passed + bool(ok), failed + (not ok)
        if not ok:
            print(what)

    statement = read(container, owner)
    check(statement["name"] + "." + statement["namespace"] == vector["name"], "name")
    check(live(statement, vector["live"]), "live")
    check(not live(statement, statement["expires"]) and not live(statement, statement["issued"] - LEAD_S - 1), "time")
    for call, index in vector["calls"].items():
        check(share(statement, call) == index, "share of " + call)
    for at in range(0, len(container), 7):  # each is a signature to verify, which takes its time here
        check(refused(container[:at] + bytes([container[at] ^ 1]) + container[at + 1:], owner), "byte %d flipped" % at)
        check(refused(container[:at], owner), "cut to %d bytes" % at)
    check(refused(container, owner[::-1]), "another owner")
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
