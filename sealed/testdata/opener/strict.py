"""The two encodings of docs/envelope.md, read strictly: DER of SM2 and the CBOR of heads.

Each function returns what it read or raises ValueError; every value has one accepted encoding.
"""

HEAD_LIMIT = 60_000


# --- DER ------------------------------------------------------------------------------------------


def der_item(data, tag):
    """The content of the item at the start of data, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("another tag")
    size, at = data[1], 2
    if size >= 0x80:
        count = size & 0x7F
        at += count
        if count == 0 or len(data) < at:
            raise ValueError("indefinite or cut length")
        size = int.from_bytes(data[2:at], "big")
        if size < 0x80 or data[2] == 0:
            raise ValueError("length is not minimal")
    if len(data) < at + size:
        raise ValueError("cut content")
    return data[at:at + size], data[at + size:]


def der_uint(data):
    body, rest = der_item(data, 0x02)
    if not body or body[0] >= 0x80:
        raise ValueError("empty or negative integer")
    if len(body) > 1 and body[0] == 0 and body[1] < 0x80:
        raise ValueError("integer is not minimal")
    return int.from_bytes(body, "big"), rest


def der_sequence(data):
    body, rest = der_item(data, 0x30)
    if rest:
        raise ValueError("bytes after the sequence")
    return body


def der_signature(data):
    """r and s, of any size."""
    r, rest = der_uint(der_sequence(data))
    s, rest = der_uint(rest)
    if rest:
        raise ValueError("bytes after s")
    return r, s


def der_encryption(data):
    """x, y (of any size), C3 and C2, 32 bytes each."""
    x, rest = der_uint(der_sequence(data))
    y, rest = der_uint(rest)
    c3, rest = der_item(rest, 0x04)
    c2, rest = der_item(rest, 0x04)
    if rest or len(c3) != 32 or len(c2) != 32:
        raise ValueError("bytes after C2, or C3 or C2 of another size")
    return x, y, c3, c2


# --- CBOR -----------------------------------------------------------------------------------------

UINT, BYTES, TEXT, ARRAY, MAP = 0, 2, 3, 4, 5


class CBOR:
    """A reader of one buffer. Heads need no true and false, so those are refused here."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n > len(self.data) - self.at:
            raise ValueError("cut item")
        self.at += n
        return self.data[self.at - n:self.at]

    def argument(self, major):
        """The number of an item of the major type: its value, or its length."""
        initial = self.take(1)[0]
        if initial >> 5 != major:
            raise ValueError("another type")
        short = initial & 31
        if short < 24:
            return short
        if short > 27:
            raise ValueError("indefinite length or reserved form")
        size = 1 << (short - 24)
        value = int.from_bytes(self.take(size), "big")
        if value < (24 if size == 1 else 1 << (4 * size)):
            raise ValueError("not the shortest form")
        return value

    def bytes(self):
        return self.take(self.argument(BYTES))

    def text(self):
        return self.take(self.argument(TEXT)).decode("utf-8", "strict")

    def keys(self, count):
        """The keys of a map with exactly the keys 1..count; each comes before its value is read."""
        if self.argument(MAP) != count:
            raise ValueError("another number of keys")
        for key in range(1, count + 1):
            if self.argument(UINT) != key:
                raise ValueError("another key")
            yield key

    def end(self):
        if self.at != len(self.data):
            raise ValueError("bytes after the item")


# --- Heads ----------------------------------------------------------------------------------------

METHOD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ-_")
VISIBLE = frozenset(map(chr, range(0x21, 0x7F)))
FIELD_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")
FIELD_VALUE = frozenset(range(256)) - frozenset(range(0x09)) - frozenset(range(0x0A, 0x20)) - {0x7F}


def require(ok, what):
    if not ok:
        raise ValueError(what)


def read_fields(cbor):
    count = cbor.argument(ARRAY)
    require(count % 2 == 0 and count <= 2 * 256, "number of fields")
    for _ in range(count // 2):
        name, value = cbor.text(), cbor.bytes()
        require(1 <= len(name) <= 256 and FIELD_NAME.issuperset(name), "field name")
        require(len(value) <= 32_768 and FIELD_VALUE.issuperset(value), "field value")


def check_head(role, plaintext):
    """Raises ValueError unless plaintext, record 0's, begins with a good head of the role (1 or 2)."""
    require(len(plaintext) >= 4, "length of the head is cut")
    size = int.from_bytes(plaintext[:4], "big")
    require(size <= HEAD_LIMIT and size <= len(plaintext) - 4, "length of the head")
    cbor = CBOR(plaintext[4:4 + size])
    if role == 1:
        keys = cbor.keys(4)
        next(keys)
        method = cbor.text()
        require(1 <= len(method) <= 32 and METHOD.issuperset(method), "method")
        next(keys)
        path = cbor.text()
        require(path == "" or path[0] == "/", "path")
        require(len(path) <= 8_192 and (VISIBLE - set("?#")).issuperset(path), "path")
        next(keys)
        query = cbor.text()
        require(len(query) <= 16_384 and (VISIBLE - set("#")).issuperset(query), "query")
        next(keys)
    else:
        keys = cbor.keys(2)
        next(keys)
        require(200 <= cbor.argument(UINT) <= 999, "status")
        next(keys)
    read_fields(cbor)
    cbor.end()
