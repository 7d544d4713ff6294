package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// PinsFile is the name of the pins' file inside a configuration directory.
const PinsFile = "pins.json"

// BrokerPin is a key broker as it is believed.
type BrokerPin struct {
	Signing    sealed.PublicKey `json:"signing"`
	Decryption sealed.PublicKey `json:"decryption"`
}

// ParseBrokerPin checks what a gateway says of its broker.
func ParseBrokerPin(info api.BrokerInfo) (BrokerPin, error) {
	sign, err := sealed.ParsePublicKeyText(info.Signing)
	if err != nil {
		return BrokerPin{}, api.Wrap(api.CodeUnavailable, err, "the broker's signing key does not parse")
	}
	dec, err := sealed.ParsePublicKeyText(info.Decryption)
	if err != nil {
		return BrokerPin{}, api.Wrap(api.CodeUnavailable, err, "the broker's decryption key does not parse")
	}
	if sign == dec {
		return BrokerPin{}, api.Errorf(api.CodeUnavailable, "the broker signs and decrypts with one key")
	}
	return BrokerPin{Signing: sign, Decryption: dec}, nil
}

// Fingerprint names both keys at once: SM3 fingerprint of the signing key, as a
// person compares it. The decryption key is pinned beside it.
func (b BrokerPin) Fingerprint() sealed.Fingerprint { return b.Signing.Fingerprint() }

// gatewayPins are the pins that hold for one gateway's URL.
type gatewayPins struct {
	Broker *BrokerPin                    `json:"broker,omitempty"`
	Opener *sealed.PublicKey             `json:"manifest_opener,omitempty"` // signs the cluster's manifest keys
	Owners map[string]sealed.Fingerprint `json:"owners,omitempty"`          // "namespace" or "function.namespace"
}

type pinsFile struct {
	Version  int                     `json:"version"`
	Gateways map[string]*gatewayPins `json:"gateways"`
}

const pinsVersion = 1

// Pins are the public keys that a user decided to believe, per gateway. The zero
// value pins nobody and keeps what it learns in memory. It is safe for
// concurrent use in one process; two processes that change a file at once each
// write all of what they know, and the last one wins.
type Pins struct {
	path   string
	mu     sync.Mutex
	file   pinsFile
	opened os.FileInfo // of the file when it was read first; nil where there was none
	follow *following  // nil: it was read once
}

// OpenPins reads the pins in a configuration directory; a missing file is empty.
func OpenPins(configDir string) (*Pins, error) {
	p := &Pins{path: filepath.Join(configDir, PinsFile)}
	var err error
	if p.file, p.opened, err = readPins(p.path); err != nil {
		return nil, err
	}
	return p, nil
}

// readPins reads a file whole, and says which one it was: nil where there is none.
func readPins(path string) (out pinsFile, info os.FileInfo, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil, nil
	} else if err != nil {
		return out, nil, fmt.Errorf("client: pins: %w", err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return out, nil, fmt.Errorf("client: pins: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPinsFile+1))
	if err == nil && len(b) > maxPinsFile {
		err = errors.New("it is over 64 MiB")
	}
	if err != nil {
		return out, info, fmt.Errorf("client: pins: %w", err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return pinsFile{}, info, &api.Error{Code: api.CodeInvalid, Field: path, Err: err, Message: "it does not parse",
			Remedy: "repair it, or remove it and pin again"}
	}
	if out.Version != pinsVersion {
		return pinsFile{}, info, api.Invalid(path, "use the release that wrote it", fmt.Sprintf("version %d, only %d is known", out.Version, pinsVersion))
	}
	return out, info, nil
}

// maxPinsFile bounds the pins' file, in bytes.
const maxPinsFile = 64 << 20

// key makes the different spellings of one gateway's URL one.
func gatewayKey(gateway string) string { return strings.TrimRight(gateway, "/") }

// Broker returns the pinned broker of a gateway.
func (p *Pins) Broker(gateway string) (BrokerPin, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look()
	if g := p.file.Gateways[gatewayKey(gateway)]; g != nil && g.Broker != nil {
		return *g.Broker, true
	}
	return BrokerPin{}, false
}

// SetBroker pins a gateway's broker.
func (p *Pins) SetBroker(gateway string, b BrokerPin) error {
	return p.change(gateway, func(g *gatewayPins) { g.Broker = &b })
}

// Opener returns the pinned manifest opener of a gateway: the key that signs
// manifest keys.
func (p *Pins) Opener(gateway string) (sealed.PublicKey, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look()
	if g := p.file.Gateways[gatewayKey(gateway)]; g != nil && g.Opener != nil {
		return *g.Opener, true
	}
	return sealed.PublicKey{}, false
}

// SetOpener pins a gateway's manifest opener.
func (p *Pins) SetOpener(gateway string, identity sealed.PublicKey) error {
	return p.change(gateway, func(g *gatewayPins) { g.Opener = &identity })
}

// Owner returns who is pinned as the owner of a function: by its own name, else
// by its namespace.
func (p *Pins) Owner(gateway string, name api.FunctionName) (sealed.Fingerprint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look()
	g := p.file.Gateways[gatewayKey(gateway)]
	if g == nil {
		return sealed.Fingerprint{}, false
	}
	if f, ok := g.Owners[string(name)]; ok {
		return f, true
	}
	f, ok := g.Owners[name.Namespace()]
	return f, ok
}

// SetOwner pins the owner of a function ("function.namespace") or of all of a
// namespace ("namespace").
func (p *Pins) SetOwner(gateway, what string, owner sealed.Fingerprint) error {
	return p.change(gateway, func(g *gatewayPins) {
		if g.Owners == nil {
			g.Owners = make(map[string]sealed.Fingerprint)
		}
		g.Owners[what] = owner
	})
}

// Pin is one line of a listing.
type Pin struct {
	Gateway     string             `json:"gateway"`
	Kind        string             `json:"kind"` // "broker", "manifest-opener" or "owner"
	Name        string             `json:"name,omitempty"`
	Fingerprint sealed.Fingerprint `json:"fingerprint"`
}

// List returns all pins, in no particular order.
func (p *Pins) List() []Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look()
	var out []Pin
	for url, g := range p.file.Gateways {
		if g.Broker != nil {
			out = append(out, Pin{Gateway: url, Kind: "broker", Fingerprint: g.Broker.Fingerprint()})
		}
		if g.Opener != nil {
			out = append(out, Pin{Gateway: url, Kind: "manifest-opener", Fingerprint: g.Opener.Fingerprint()})
		}
		for name, f := range g.Owners {
			out = append(out, Pin{Gateway: url, Kind: "owner", Name: name, Fingerprint: f})
		}
	}
	return out
}

func (p *Pins) change(gateway string, edit func(*gatewayPins)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.look(); p.follow != nil && p.follow.broken != nil {
		return p.follow.broken // what is written would replace what somebody may yet repair
	}
	if p.file.Gateways == nil {
		p.file.Gateways = make(map[string]*gatewayPins)
	}
	p.file.Version = pinsVersion
	key := gatewayKey(gateway)
	if p.file.Gateways[key] == nil {
		p.file.Gateways[key] = new(gatewayPins)
	}
	edit(p.file.Gateways[key])
	if p.path == "" {
		return nil
	}
	b, err := json.MarshalIndent(p.file, "", "  ")
	if err != nil {
		return fmt.Errorf("client: pins: %w", err)
	}
	return writeFile(p.path, append(b, '\n'), 0o644)
}

// PinBroker records in configDir that gateway's key broker is to be believed. It
// is for who started that broker and has its identity first-hand.
func PinBroker(configDir, gateway string, info api.BrokerInfo) error {
	u, err := parseGateway("gateway", gateway)
	if err != nil {
		return err
	}
	b, err := ParseBrokerPin(info)
	if err != nil {
		return err
	}
	p, err := OpenPins(configDir)
	if err != nil {
		return err
	}
	return p.SetBroker(u.String(), b)
}

// PinOpener records in configDir that gateway's manifest opener is to be believed,
// as PinBroker does for the broker.
func PinOpener(configDir, gateway string, keys api.ManifestKeys) error {
	u, err := parseGateway("gateway", gateway)
	if err != nil {
		return err
	}
	identity, err := sealed.ParsePublicKeyText(keys.Identity)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the manifest opener's key does not parse")
	}
	p, err := OpenPins(configDir)
	if err != nil {
		return err
	}
	return p.SetOpener(u.String(), identity)
}

// writeFile replaces path as a whole or not at all; its directory is made when
// it is missing.
func writeFile(path string, b []byte, mode fs.FileMode) (retErr error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("client: write: %w", err)
	}
	f, err := os.CreateTemp(dir, ".*.tmp")
	if err != nil {
		return fmt.Errorf("client: write: %w", err)
	}
	defer func() {
		if retErr != nil {
			f.Close()
			os.Remove(f.Name())
			retErr = fmt.Errorf("client: write %s: %w", path, retErr)
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
