package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// record is what is remembered of an attachment. It is on the disk before the
// first thing is made and until after the last is removed, so that whatever a
// crash leaves behind has a record that leads to it.
type record struct {
	ID      string     `json:"id"`
	NetNS   string     `json:"netns"`  // path it was reached by
	Cookie  uint64     `json:"cookie"` // the kernel's name for it, not given twice in one boot
	Boot    string     `json:"boot"`   // the boot that cookie is of
	Want    Want       `json:"want"`
	Address netip.Addr `json:"address,omitzero"`
	MAC     string     `json:"mac,omitempty"`
	Link    string     `json:"link,omitempty"` // the host's end
	Index   int        `json:"index,omitempty"`
	Done    bool       `json:"done,omitempty"` // everything is set and was read back
}

// validID is what names of sandboxes may be: what CNI allows, and short enough
// for a file name.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

const recordSuffix = ".json"

func (m *Manager) recordPath(id string) string {
	return filepath.Join(m.cfg.Dir, "attached", id+recordSuffix)
}

// save replaces the record whole and has it on the disk when it returns.
func (m *Manager) save(r *record) (retErr error) {
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("network: keep the record of %s: %w", r.ID, retErr)
		}
	}()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := m.recordPath(r.ID)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (m *Manager) forget(id string) error {
	path := m.recordPath(id)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network: remove the record of %s: %w", id, err)
	}
	return syncDir(filepath.Dir(path))
}

// load reads all records. One that does not parse is an error: what it led to
// would be left behind.
func (m *Manager) load() (map[string]*record, error) {
	dir := filepath.Join(m.cfg.Dir, "attached")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("network: read records: %w", err)
	}
	all := map[string]*record{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(e.Name(), ".tmp") {
			// Not yet a record, or the newer one of a step that did not happen.
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("network: %w", err)
			}
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("network: read a record: %w", err)
		}
		r := &record{}
		if err := json.Unmarshal(b, r); err != nil {
			return nil, fmt.Errorf("network: record %s: %w", path, err)
		}
		if r.ID+recordSuffix != e.Name() || !validID.MatchString(r.ID) {
			return nil, fmt.Errorf("network: record %s is for %q", path, r.ID)
		}
		all[r.ID] = r
	}
	return all, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir holds the directory for this process: two managers of one bridge
// would take each other's attachments for left-overs.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("network: %s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}
