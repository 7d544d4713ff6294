package opener_test

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"encoding"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/opener"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// needles are what an attacker who reads the opener's memory looks for.
type needles map[string][]byte

// tap keeps what an initiator drew: the first 32 bytes are the grant's seed.
type tap struct{ drawn []byte }

func (r *tap) Read(p []byte) (int, error) {
	n, err := rand.Read(p)
	r.drawn = append(r.drawn, p[:n]...)
	return n, err
}

const messageHeader, bound = 125, 93

// grantNeedles derives a grant's secrets by the formulas of docs/envelope.md,
// from the seed that the initiator drew.
func grantNeedles(t *testing.T, prefix string, message []byte, to sealed.PublicKey, seed []byte, out needles) {
	t.Helper()
	p, err := sealed.Peek(message)
	if err != nil {
		t.Fatal(err)
	}
	grant := message[:p.Len-messageHeader]
	h := sm3.Sum(append(bytes.Clone(grant), to[:]...))
	prk, err := hkdf.Extract(sm3.New, seed, append([]byte("faasd-sec/v1 prk\x00"), h[:]...))
	if err != nil {
		t.Fatal(err)
	}
	okm, err := hkdf.Expand(sm3.New, prk, "faasd-sec/v1 msg\x00"+string(message[len(grant):len(grant)+bound]), 92)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(okm[28:60], message[len(grant)+bound:p.Len]) {
		t.Fatal("the test derives other keys than the envelope commits to")
	}
	out[prefix+" seed"], out[prefix+" prk"], out[prefix+" message key"], out[prefix+" export"] = seed, prk, okm[:16], okm[60:92]
	// What serves as well as the keys: SM4's expanded key, and HMAC's states
	// after the key block, as words of this machine and as the library writes them.
	words := roundKeys(t, okm[:16])
	out[prefix+" first round keys"], out[prefix+" last round keys"] = words[:16], words[112:]
	for name, pad := range map[string]byte{"inner": 0x36, "outer": 0x5c} {
		block := bytes.Repeat([]byte{pad}, sm3.BlockSize)
		for i, c := range prk {
			block[i] ^= c
		}
		hash := sm3.New()
		hash.Write(block)
		state, err := hash.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		chain := state[4:36]
		out[prefix+" prk "+name+" state"] = chain
		out[prefix+" prk "+name+" words"] = swap(chain)
	}
}

func swap(be []byte) []byte {
	var le []byte
	for i := 0; i < len(be); i += 4 {
		le = binary.LittleEndian.AppendUint32(le, binary.BigEndian.Uint32(be[i:]))
	}
	return le
}

// roundKeys are the 32 words that SM4 expands a key to, taken from the library's
// own value.
func roundKeys(t *testing.T, key []byte) []byte {
	t.Helper()
	block, err := sm4.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	var find func(v reflect.Value) []byte
	find = func(v reflect.Value) []byte {
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				return find(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if b := find(v.Field(i)); b != nil {
					return b
				}
			}
		case reflect.Array, reflect.Slice:
			if v.Type().Elem().Kind() == reflect.Uint32 && v.Len() == 32 {
				var out []byte
				for i := range 32 {
					out = binary.LittleEndian.AppendUint32(out, uint32(v.Index(i).Uint()))
				}
				return out
			}
		}
		return nil
	}
	words := find(reflect.ValueOf(block))
	if words == nil {
		t.Fatal("the library keeps its round keys elsewhere")
	}
	return words
}

// search reads the whole memory of a process, and says where each needle is.
func search(t *testing.T, pid int, want needles) (found map[string]string, size int) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found = map[string]string{}
	const overlap = 64
	buf := make([]byte, 4<<20)
	for s := bufio.NewScanner(maps); s.Scan(); {
		var from, to uint64
		line := s.Text()
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if f := strings.Fields(line); !strings.HasPrefix(f[1], "r") || strings.Contains(line, "[v") {
			continue
		}
		for at := from; at < to; {
			n, err := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			size += n
			for name, b := range want {
				if bytes.Contains(buf[:n], b) {
					found[name] = line
				}
			}
			if err != nil || n == 0 {
				if !strings.Contains(line, "secretmem") {
					t.Logf("not readable: %s: %v", line, err)
				}
				break
			}
			if at += uint64(n); at < to {
				at -= overlap
			}
		}
	}
	return found, size
}

func TestMemoryOfTheOpenerForgetsManifests(t *testing.T) {
	w := newWorld(t)
	blob := w.deposit()
	want, control := needles{}, needles{"the public key": w.key[:]}
	for i := range 8 {
		var word, number [8]byte
		rand.Read(word[:])
		rand.Read(number[:])
		m := w.wish()
		m.Task = sealed.ID{byte(i + 1)}
		canary := fmt.Sprintf("CANARY-%x", word)
		m.Needs.MemoryBytes = binary.LittleEndian.Uint64(number[:])&(manifest.MaxBytes-1) | 1<<49
		m.Needs.Constraints = []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: canary}}
		r := new(tap)
		message := w.seal(m, w.caller, r)
		name := fmt.Sprintf("manifest %d", i)
		grantNeedles(t, name, message, w.key, r.drawn[:32], want)
		want[name+" label"] = []byte(canary[7:])
		want[name+" memory, as a word"] = binary.LittleEndian.AppendUint64(nil, m.Needs.MemoryBytes)
		want[name+" memory, as CBOR"] = binary.BigEndian.AppendUint64(nil, m.Needs.MemoryBytes)
		got, err := w.client.Open(t.Context(), w.s, blob, message)
		if err != nil || got.Manifest.Needs.MemoryBytes != m.Needs.MemoryBytes {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	bounds := new(tap)
	sealedBounds, err := manifest.SealBounds(w.bounds(), w.key, w.owner.Signer(), w.s.Function, time.Now(), bounds)
	if err != nil {
		t.Fatal(err)
	}
	grantNeedles(t, "bounds", sealedBounds, w.key, bounds.drawn[:32], want)
	if _, err := w.client.Deposit(t.Context(), w.s, sealedBounds); err != nil {
		t.Fatal(err)
	}

	// What is promised, and then as long as a loaded machine may take.
	time.Sleep(opener.EraseWithin)
	var found map[string]string
	var size, searches int
	for deadline := time.Now().Add(20 * time.Second); ; {
		searches++
		if found, size = search(t, w.cmd.Process.Pid, want); len(found) == 0 || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%d needles, %d bytes of memory, %d searches", len(want), size, searches)
	for name, where := range found {
		t.Errorf("%s is in the opener's memory: %s", name, where)
	}
	if found, _ := search(t, w.cmd.Process.Pid, control); len(found) != len(control) {
		t.Error("the search does not find what is there")
	}
}

func TestKeysAtRestAreNeitherOnDiskNorInReadableMemory(t *testing.T) {
	w := newWorld(t)
	w.deposit()
	if !strings.Contains(w.log.String(), `"secret_memory":true`) {
		t.Fatal("the kernel offers no memfd_secret here: the key page is readable to root")
	}
	// The test opens the state directory as its owner would, to learn the keys.
	w.kill()
	keys := stateKeys(t, filepath.Join(w.dir, "state"))
	w.start()
	w.seal(w.wish(), w.caller, nil)
	if _, err := w.client.Open(t.Context(), w.s, w.deposit(), w.seal(w.wish(), w.caller, nil)); err != nil {
		t.Fatal(err)
	}
	var found map[string]string
	for deadline := time.Now().Add(20 * time.Second); ; {
		if found, _ = search(t, w.cmd.Process.Pid, keys); len(found) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for name, where := range found {
		t.Errorf("%s is in readable memory: %s", name, where)
	}
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		for name, k := range keys {
			if bytes.Contains(b, k) {
				t.Errorf("%s is in %s", name, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stateKeys decrypts what an opener keeps on disk, by docs/manifest.md.
func stateKeys(t *testing.T, dir string) needles {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root := rootScalar(t, pem)
	out := needles{"root scalar": root, "root scalar, reversed": reversed(root)}
	derive := func(info string) []byte {
		k, err := hkdf.Key(sm3.New, root, nil, info, 16)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	out["storage key"] = derive("faasd-sec/v1 manifest-opener storage")
	files := derive("faasd-sec/v1 manifest-opener keys")
	out["key files' key"] = files
	out["storage round keys"], out["key files' round keys"] = roundKeys(t, out["storage key"])[:16], roundKeys(t, files)[:16]
	paths, err := filepath.Glob(filepath.Join(dir, "keys", "*.key"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no key files", err)
	}
	for _, path := range paths {
		scalar := openKeyFile(t, path, files)
		out[path] = scalar
		out[path+", reversed"] = reversed(scalar) // as a big number's words
	}
	return out
}
