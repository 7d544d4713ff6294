package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// The labels of a sandbox's container. Together they are all that Recover
// needs to give a running sandbox back.
const (
	labelSandbox   = "faasd-sec.sandbox" // the id; also on its lease
	labelFunction  = "faasd-sec.function"
	labelRevision  = "faasd-sec.revision"
	labelSocketDir = "faasd-sec.socket-dir"
	labelUIDBase   = "faasd-sec.uid-base" // first host id of its range
	labelUser      = "faasd-sec.user"     // "uid:gid" of the function, inside
	labelResources = "faasd-sec.resources"
	labelCreated   = "faasd-sec.created"
	labelStart     = "faasd-sec.start"    // api.StartPooled or api.StartPlain
	labelReserved  = "faasd-sec.reserved" // the caller's; absent where it gave none
	labelBlank     = "faasd-sec.blank"    // "1" until it has a function
)

func (s *Sandbox) labels() map[string]string {
	info := s.Info()
	res, _ := json.Marshal(info.Resources) // a struct of integers
	l := map[string]string{
		labelSandbox:   info.ID,
		labelFunction:  string(info.Function),
		labelRevision:  info.Revision,
		labelSocketDir: info.SocketDir,
		labelUIDBase:   strconv.FormatUint(uint64(s.base), 10),
		labelUser:      fmt.Sprintf("%d:%d", info.UID, info.GID),
		labelResources: string(res),
		labelCreated:   info.CreatedAt.Format(time.RFC3339Nano),
		labelStart:     info.Start,
	}
	if len(info.Reserved) > 0 {
		l[labelReserved] = info.Reserved
	}
	if info.Blank {
		l[labelBlank] = "1"
	}
	return l
}

// sandboxOf is the sandbox that labels describe, without its process.
func (r *Runtime) sandboxOf(labels map[string]string) (*Sandbox, error) {
	id := labels[labelSandbox]
	fail := func(label string, err error) error {
		return fmt.Errorf("sandbox %s: label %s=%q: %w", id, label, labels[label], err)
	}
	if !idForm.MatchString(id) {
		return nil, fail(labelSandbox, errors.New("not an id"))
	}
	info := runtime.Info{
		ID: id, Function: api.FunctionName(labels[labelFunction]), Revision: labels[labelRevision], SocketDir: labels[labelSocketDir],
		Start: labels[labelStart], Blank: labels[labelBlank] != "", Reserved: labels[labelReserved],
	}
	if info.Start == "" {
		info.Start = api.StartPlain // made by a release that knew no other
	}
	base, err := strconv.ParseUint(labels[labelUIDBase], 10, 32)
	if err != nil {
		return nil, fail(labelUIDBase, err)
	}
	if _, err := fmt.Sscanf(labels[labelUser], "%d:%d", &info.UID, &info.GID); err != nil {
		return nil, fail(labelUser, err)
	}
	if err := json.Unmarshal([]byte(labels[labelResources]), &info.Resources); err != nil {
		return nil, fail(labelResources, err)
	}
	if info.CreatedAt, err = time.Parse(time.RFC3339Nano, labels[labelCreated]); err != nil {
		return nil, fail(labelCreated, err)
	}
	limits, err := cgroups.For(info.Resources, r.device)
	if err != nil {
		return nil, fail(labelResources, err)
	}
	return &Sandbox{
		r: r, info: info, base: uint32(base), limits: limits,
		group: r.cgroups.Group(r.cgroupPath(id)), gone: make(chan struct{}), ending: make(chan struct{}),
	}, nil
}

// record is what is left of a sandbox that never got as far as a container. Of
// one that was bound it says what it became, before containerd is told.
type record struct {
	ID        string            `json:"id"`
	SocketDir string            `json:"socket_dir"`
	Labels    map[string]string `json:"labels,omitempty"` // of a bound one, as its container will have them
	Image     string            `json:"image,omitempty"`  // its digest
}

// A record is a line of JSON. What a blank became is a second one that follows
// it, in one write to a file that was opened long before: it counts once its
// newline is there, and until then the first line does.

// openRecord opens a sandbox's record for appendRecord.
func (r *Runtime) openRecord(id string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.dir(id), "record"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("open the record of sandbox %s: %w", id, err)
	}
	return f, nil
}

// appendRecord puts rec in the place of the record that is in f, or leaves that.
func appendRecord(f *os.File, rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	return nil
}

func (s *Sandbox) record() record { return record{ID: s.info.ID, SocketDir: s.info.SocketDir} }

// writeRecord makes the sandbox's directory. It comes before anything else is
// made, so that nothing is ever without a record of where it belongs.
func (r *Runtime) writeRecord(rec record) error {
	dir := r.dir(rec.ID)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "record"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	return nil
}

// readRecord gives a record without a socket directory where the daemon was
// killed between making the directory and writing the file.
func (r *Runtime) readRecord(id string) (record, error) {
	b, err := os.ReadFile(filepath.Join(r.dir(id), "record"))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(b) == 0) {
		return record{ID: id}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("read the record of sandbox %s: %w", id, err)
	}
	rec, err := parseRecord(b)
	if err != nil {
		return record{}, fmt.Errorf("read the record of sandbox %s: %w", id, err)
	}
	return rec, nil
}

// parseRecord takes the second line where all of it is there. A sandbox whose
// daemon was killed while it wrote that never heard of its function.
func parseRecord(b []byte) (record, error) {
	first, second, _ := bytes.Cut(b, []byte("\n"))
	var rec, became record
	if err := json.Unmarshal(first, &rec); err != nil {
		return record{}, err
	}
	if line, whole := bytes.CutSuffix(second, []byte("\n")); whole && json.Unmarshal(line, &became) == nil && became.ID == rec.ID {
		return became, nil
	}
	return rec, nil
}
