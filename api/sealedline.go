package api

import (
	"bytes"
	"encoding/base64"
)

// sealedLine begins a sealed log record that is written as a word of text.
const sealedLine = "fsl1."

// SealedLine writes a sealed log record as a line of text, with a hint how to open
// it, for readers that know nothing else.
func SealedLine(fn FunctionName, record []byte) string {
	return "sealed to its owner, who opens it with: faasd-sec logs " + fn.Short() + " --from FILE  " + sealedLine + base64.RawURLEncoding.EncodeToString(record)
}

// ParseSealedLine finds the record in a line that has one, whatever was written
// around it.
func ParseSealedLine(line []byte) (record []byte, found bool, err error) {
	_, word, found := bytes.Cut(line, []byte(sealedLine))
	if !found {
		return nil, false, nil
	}
	for i, b := range word {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_') {
			word = word[:i]
			break
		}
	}
	record, err = base64.RawURLEncoding.AppendDecode(nil, word)
	if err != nil {
		return nil, true, Invalid("from", "copy the whole line", "a sealed record is cut off, or changed")
	}
	return record, true, nil
}
