package coordinator

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
)

var update = flag.Bool("update-callback-vectors", false, "write testdata/callback.json anew")

// callbackVector is one signed callback, for receivers in other languages.
type callbackVector struct {
	Public    string `json:"public"` // SM2 point, hex
	Timestamp string `json:"timestamp"`
	URL       string `json:"url"`
	CallID    string `json:"call_id"`
	Function  string `json:"function"`
	Status    string `json:"status"`
	Type      string `json:"content_type"`
	Body      string `json:"body"` // text
	Signed    string `json:"signed"`
	Signature string `json:"signature"` // DER, hex
	Valid     bool   `json:"valid"`
}

func TestCallbackVectors(t *testing.T) {
	const path = "testdata/callback.json"
	if *update {
		k, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		v := callbackVector{Timestamp: "1795827600", URL: "https://example.org/done?x=1", CallID: "5f0c1d", Function: "echo", Status: "200",
			Type: "application/vnd.faasd-sec.sealed", Body: "the body as it came", Valid: true}
		sum := sm3.Sum([]byte(v.Body))
		msg := CallbackMessage(v.Timestamp, v.URL, v.CallID, v.Function, v.Status, v.Type, hex.EncodeToString(sum[:]))
		sig, pub, err := sealed.Sign(rand.Reader, k, LabelCallback, msg)
		if err != nil {
			t.Fatal(err)
		}
		v.Public, v.Signed, v.Signature = pub.String(), string(msg), hex.EncodeToString(sig)
		bad := v
		bad.Body, bad.Valid = v.Body+".", false
		late := v
		late.Timestamp, late.Valid = "1795827601", false
		b, err := json.MarshalIndent([]callbackVector{v, bad, late}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []callbackVector
	if err := json.Unmarshal(b, &all); err != nil || len(all) < 3 {
		t.Fatal(len(all), err)
	}
	for i, v := range all {
		pub, err := sealed.ParsePublicKeyText(v.Public)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := hex.DecodeString(v.Signature)
		if err != nil {
			t.Fatal(err)
		}
		sum := sm3.Sum([]byte(v.Body))
		msg := CallbackMessage(v.Timestamp, v.URL, v.CallID, v.Function, v.Status, v.Type, hex.EncodeToString(sum[:]))
		if sealed.Verify(pub, sig, LabelCallback, msg) != v.Valid || v.Valid && string(msg) != v.Signed {
			t.Errorf("vector %d", i)
		}
	}
}
