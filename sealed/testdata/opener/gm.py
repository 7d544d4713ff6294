"""SM3, HKDF, SM4-GCM and SM2 in plain Python: what docs/envelope.md builds on.

Promised: the outcomes of GB/T 32905, RFC 5869, GB/T 32907, NIST SP 800-38D and GB/T 32918, each
shown by examples in self_test. Not promised: speed, constant time, secrecy of what is in memory.
"""

import hashlib
import hmac as std_hmac
from struct import pack, unpack

M32 = 0xFFFFFFFF


def rol(x, n):
    n %= 32
    return ((x << n) | (x >> (32 - n))) & M32


# --- SM3, HMAC, HKDF ------------------------------------------------------------------------------

SM3_IV = (0x7380166F, 0x4914B2B9, 0x172442D7, 0xDA8A0600, 0xA96F30BC, 0x163138AA, 0xE38DEE4D, 0xB0FB0E4E)
SM3_T = [rol(0x79CC4519 if j < 16 else 0x7A879D8A, j) for j in range(64)]


def sm3(data):
    """The 32-byte digest of data."""
    v = SM3_IV
    data = bytes(data)
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + pack(">Q", 8 * len(data))
    for at in range(0, len(padded), 64):
        w = list(unpack(">16I", padded[at:at + 64]))
        for j in range(16, 68):
            x = w[j - 16] ^ w[j - 9] ^ rol(w[j - 3], 15)
            w.append(x ^ rol(x, 15) ^ rol(x, 23) ^ rol(w[j - 13], 7) ^ w[j - 6])
        a, b, c, d, e, f, g, h = v
        for j in range(64):
            ss1 = rol((rol(a, 12) + e + SM3_T[j]) & M32, 7)
            ss2 = ss1 ^ rol(a, 12)
            ff, gg = (a ^ b ^ c, e ^ f ^ g) if j < 16 else ((a & b) | (a & c) | (b & c), (e & f) | (~e & g))
            tt1 = (ff + d + ss2 + (w[j] ^ w[j + 4])) & M32
            tt2 = (gg + h + ss1 + w[j]) & M32
            a, b, c, d = tt1, a, rol(b, 9), c
            e, f, g, h = tt2 ^ rol(tt2, 9) ^ rol(tt2, 17), e, rol(f, 19), g
        v = tuple(x ^ y for x, y in zip(v, (a, b, c, d, e, f, g, h)))
    return pack(">8I", *v)


def hmac(key, data, digest=sm3):
    """HMAC (RFC 2104) with a hash of 64-byte blocks."""
    key = (digest(key) if len(key) > 64 else key).ljust(64, b"\0")
    inner = digest(bytes(k ^ 0x36 for k in key) + data)
    return digest(bytes(k ^ 0x5C for k in key) + inner)


def hkdf_extract(salt, ikm, digest=sm3):
    return hmac(salt, ikm, digest)


def hkdf_expand(prk, info, size, digest=sm3):
    out, block, i = b"", b"", 0
    while len(out) < size:
        i += 1
        block = hmac(prk, block + info + bytes([i]), digest)
        out += block
    return out[:size]


# --- SM4, GCM -------------------------------------------------------------------------------------


def sm4_sbox():
    """The S-box by its algebra: an affine map, inversion modulo x^8+x^7+x^6+x^5+x^4+x^2+1, the map again."""

    def mul(x, y):
        z = 0
        while y:
            z ^= x if y & 1 else 0
            x = (x << 1) ^ (0x1F5 if x & 0x80 else 0)
            y >>= 1
        return z

    inverse = [next((y for y in range(256) if mul(x, y) == 1), 0) for x in range(256)]
    rows = [((0xA7 << i) | (0xA7 >> (8 - i))) & 0xFF for i in range(8)]

    def affine(x):
        return sum((bin(row & x).count("1") & 1) << i for i, row in enumerate(rows)) ^ 0xD3

    return [affine(inverse[affine(x)]) for x in range(256)]


SM4_S = sm4_sbox()
SM4_L = [x ^ rol(x, 2) ^ rol(x, 10) ^ rol(x, 18) ^ rol(x, 24) for x in SM4_S]
SM4_T = [[rol(x, 24 - 8 * i) for x in SM4_L] for i in range(4)]  # byte 0 is the most significant
SM4_FK = (0xA3B1BAC6, 0x56AA3350, 0x677D9197, 0xB27022DC)


class SM4:
    """SM4 under one key: encryption of single blocks, all that GCM needs."""

    def __init__(self, key):
        k = [x ^ fk for x, fk in zip(unpack(">4I", key), SM4_FK)]
        for i in range(32):
            ck = int.from_bytes(bytes((4 * i + j) * 7 % 256 for j in range(4)), "big")
            x = k[i + 1] ^ k[i + 2] ^ k[i + 3] ^ ck
            x = int.from_bytes(bytes(SM4_S[b] for b in x.to_bytes(4, "big")), "big")
            k.append(k[i] ^ x ^ rol(x, 13) ^ rol(x, 23))
        self.round_keys = k[4:]

    def encrypt(self, block):
        t0, t1, t2, t3 = SM4_T
        a, b, c, d = unpack(">4I", block)
        for rk in self.round_keys:
            x = b ^ c ^ d ^ rk
            a, b, c, d = b, c, d, a ^ t0[x >> 24] ^ t1[x >> 16 & 255] ^ t2[x >> 8 & 255] ^ t3[x & 255]
        return pack(">4I", d, c, b, a)


GCM_R = 0xE1 << 120


def gcm_halve(x):
    """x times the polynomial's variable, in GCM's reflected order of bits."""
    return (x >> 1) ^ (GCM_R if x & 1 else 0)


def gcm_reductions():
    out = []
    for x in range(256):
        for _ in range(8):
            x = gcm_halve(x)
        out.append(x)
    return out


GCM_REDUCE = gcm_reductions()


class GCM:
    """SM4-GCM with 12-byte nonces and 16-byte tags."""

    def __init__(self, key):
        self.sm4 = SM4(key)
        h = int.from_bytes(self.sm4.encrypt(bytes(16)), "big")
        self.table = [0] * 256  # the products of h and each byte at the front
        for i in range(8):
            self.table[0x80 >> i] = h
            h = gcm_halve(h)
        for x in range(256):
            low = x & -x
            self.table[x] = self.table[low] ^ self.table[x ^ low] if x else 0

    def ghash(self, data):
        y, table, reduce = 0, self.table, GCM_REDUCE
        for at in range(0, len(data), 16):
            block = (y ^ int.from_bytes(data[at:at + 16], "big")).to_bytes(16, "big")
            y = 0
            for byte in reversed(block):
                y = (y >> 8) ^ reduce[y & 255] ^ table[byte]
        return y.to_bytes(16, "big")

    def crypt(self, nonce, data):
        stream = b"".join(self.sm4.encrypt(nonce + pack(">I", 2 + i)) for i in range((len(data) + 15) // 16))
        return (int.from_bytes(stream[:len(data)], "big") ^ int.from_bytes(data, "big")).to_bytes(len(data), "big")

    def tag(self, nonce, aad, ciphertext):
        lengths = pack(">QQ", 8 * len(aad), 8 * len(ciphertext))
        s = self.ghash(aad + bytes(-len(aad) % 16) + ciphertext + bytes(-len(ciphertext) % 16) + lengths)
        return bytes(x ^ y for x, y in zip(s, self.sm4.encrypt(nonce + pack(">I", 1))))

    def open(self, nonce, aad, body):
        """The plaintext of ciphertext || tag, or None."""
        ciphertext, tag = body[:-16], body[-16:]
        if not std_hmac.compare_digest(tag, self.tag(nonce, aad, ciphertext)):
            return None
        return self.crypt(nonce, ciphertext)


# --- SM2 ------------------------------------------------------------------------------------------

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A = P - 3
B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
     0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0)


def be32(x):
    return x.to_bytes(32, "big")


def on_curve(x, y):
    return 0 <= x < P and 0 <= y < P and (y * y - x * x * x - A * x - B) % P == 0


def parse_point(data):
    """The affine point of 04 || x || y, or None if the form is another or it is not on the curve."""
    if len(data) != 65 or data[0] != 4:
        return None
    x, y = int.from_bytes(data[1:33], "big"), int.from_bytes(data[33:], "big")
    return (x, y) if on_curve(x, y) else None


def double(q):
    x, y, z = q  # Jacobian; z = 0 is the point at infinity
    m, s = 3 * (x - z * z) * (x + z * z) % P, 4 * x * y * y % P
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * pow(y, 4, P)) % P, 2 * y * z % P


def add(q, r):
    if q[2] == 0:
        return r
    if r[2] == 0:
        return q
    (x1, y1, z1), (x2, y2, z2) = q, r
    u1, u2 = x1 * z2 * z2 % P, x2 * z1 * z1 % P
    s1, s2 = y1 * z2 ** 3 % P, y2 * z1 ** 3 % P
    if u1 == u2:
        return double(q) if s1 == s2 else (1, 1, 0)
    h, t = (u2 - u1) % P, (s2 - s1) % P
    x3 = (t * t - h ** 3 - 2 * u1 * h * h) % P
    return x3, (t * (u1 * h * h - x3) - s1 * h ** 3) % P, h * z1 * z2 % P


def multiply(k, point):
    """k times an affine point, Jacobian. Takes time that depends on k."""
    q = (1, 1, 0)
    for bit in bin(k)[2:]:
        q = double(q)
        if bit == "1":
            q = add(q, (*point, 1))
    return q


def affine(q):
    """The affine point, or None for the one at infinity."""
    if q[2] == 0:
        return None
    i = pow(q[2], -1, P)
    return q[0] * i * i % P, q[1] * i ** 3 % P


def sm2_digest(public, message, signer=b"1234567812345678"):
    """e = SM3(Z_A || message), as a number."""
    z = sm3(pack(">H", 8 * len(signer)) + signer + b"".join(map(be32, (A, B, *G, *public))))
    return int.from_bytes(sm3(z + message), "big")


def sm2_verify(public, message, r, s):
    if not (1 <= r < N and 1 <= s < N) or (r + s) % N == 0:
        return False
    q = affine(add(multiply(s, G), multiply((r + s) % N, public)))
    return q is not None and (sm2_digest(public, message) + q[0]) % N == r


def sm2_decrypt(scalar, x, y, c3, c2):
    """The message of one encryption (GB/T 32918.4, steps of clause 7), or None."""
    if not on_curve(x, y):
        return None
    shared = affine(multiply(scalar, (x, y)))
    if shared is None:
        return None
    x2, y2 = map(be32, shared)
    blocks = (len(c2) + 31) // 32
    t = b"".join(sm3(x2 + y2 + pack(">I", i + 1)) for i in range(blocks))[:len(c2)]
    if not any(t):
        return None
    message = bytes(a ^ b for a, b in zip(c2, t))
    return message if std_hmac.compare_digest(sm3(x2 + message + y2), c3) else None


# --- Examples -------------------------------------------------------------------------------------


def self_test():
    """Raises AssertionError unless each primitive gives the published example's outcome."""

    def check(name, ok):
        if not ok:
            raise AssertionError(name)

    def sha256(data):
        return hashlib.sha256(data).digest()

    h = bytes.fromhex
    check("SM3, GB/T 32905 example 1",
          sm3(b"abc") == h("66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"))
    check("SM3, GB/T 32905 example 2",
          sm3(b"abcd" * 16) == h("debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"))
    check("HMAC, key over a block",
          hmac(b"k" * 65, b"data", sha256) == std_hmac.new(b"k" * 65, b"data", "sha256").digest())
    prk = hkdf_extract(h("000102030405060708090a0b0c"), b"\x0b" * 22, sha256)
    check("HKDF, RFC 5869 A.1", hkdf_expand(prk, h("f0f1f2f3f4f5f6f7f8f9"), 42, sha256) == h(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"))
    key = h("0123456789abcdeffedcba9876543210")
    check("SM4 S-box is a permutation", sorted(SM4_S) == list(range(256)) and SM4_S[:3] == [0xD6, 0x90, 0xE9])
    check("SM4, GB/T 32907 example 1", SM4(key).encrypt(key) == h("681edf34d206965e86b3e94f536e4246"))
    plain = b"".join(bytes([x]) * 8 for x in h("aabbccddeeffeeaa"))
    sealed = h("17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735"
               "d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d83de3541e4c2b58177e065a9bf7b62ec")
    nonce, aad = h("00001234567800000000abcd"), h("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    check("SM4-GCM, RFC 8998 A.1", GCM(key).open(nonce, aad, sealed) == plain)
    check("SM4-GCM, another tag", GCM(key).open(nonce, aad, sealed[:-1] + b"\0") is None)
    d = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
    public = (0x09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020,
              0xCCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13)
    check("SM2 key, GB/T 32918.5", affine(multiply(d, G)) == public)
    check("SM2 order", multiply(N, G)[2] == 0)
    r, s = (0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3,
            0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA)
    check("SM2 signature, GB/T 32918.5 annex A", sm2_verify(public, b"message digest", r, s))
    check("SM2 signature, another message", not sm2_verify(public, b"message digesu", r, s))
    c1 = (0x04EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73,
          0xE858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0)
    c3 = h("59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766")
    c2 = h("21886ca989ca9c7d58087307ca93092d651efa")
    check("SM2 encryption, GB/T 32918.5 annex C", sm2_decrypt(d, *c1, c3, c2) == b"encryption standard")
    check("SM2 encryption, another C3", sm2_decrypt(d, *c1, c2.ljust(32), c2) is None)


if __name__ == "__main__":
    self_test()
    print("primitives agree with the published examples")
