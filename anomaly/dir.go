package anomaly

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names in a log's directory. Others are no part of the log.
const (
	headName      = "HEAD"
	lockName      = "LOCK"
	segmentSuffix = ".seg"
	damagedSuffix = ".damaged" // a segment that was found not to be what it was
	tempSuffix    = ".tmp"
)

// segmentFile is one segment in a directory.
type segmentFile struct {
	number  uint64
	damaged bool
	size    int64
}

func segmentName(n uint64, damaged bool) string {
	if damaged {
		return fmt.Sprintf("%010d%s", n, damagedSuffix)
	}
	return fmt.Sprintf("%010d%s", n, segmentSuffix)
}

func (s segmentFile) path(dir string) string {
	return filepath.Join(dir, segmentName(s.number, s.damaged))
}

// listSegments returns the segments in order. Where a number has both files the
// sound one comes first.
func listSegments(dir string) ([]segmentFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("anomaly: list the log: %w", err)
	}
	var list []segmentFile
	for _, e := range entries {
		name, damaged := strings.CutSuffix(e.Name(), damagedSuffix)
		if !damaged {
			var is bool
			if name, is = strings.CutSuffix(e.Name(), segmentSuffix); !is {
				continue
			}
		}
		n, err := strconv.ParseUint(name, 10, 64)
		if err != nil || n == 0 || segmentName(n, damaged) != e.Name() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("anomaly: list the log: %w", err)
		}
		list = append(list, segmentFile{number: n, damaged: damaged, size: info.Size()})
	}
	slices.SortFunc(list, func(a, b segmentFile) int {
		if a.number == b.number && a.damaged != b.damaged {
			if a.damaged {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.number, b.number)
	})
	return list, nil
}

// replaceFile puts b in the place of path, durably and as a whole or not at all.
func replaceFile(path string, b []byte, mode fs.FileMode) (retErr error) {
	f, err := createTemp(path, mode)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if retErr != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// createTemp opens path.tmp anew; one writer has a directory, so the name is fixed.
func createTemp(path string, mode fs.FileMode) (*os.File, error) {
	if err := os.Remove(path + tempSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
