package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// Setting is one small value of the cluster, under a name such as
// "gossip/keys" or "nodes/rack-1".
type Setting struct {
	Name    string
	Value   []byte
	Version int64
}

func (s *Store) settingKey(name string) (string, error) {
	const remedy = "use a-z, 0-9, '-', '.', '_' in parts separated by '/'"
	if len(name) > 200 {
		return "", api.Invalid("setting", remedy, fmt.Sprintf("its name has %d characters", len(name)))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
			return "", api.Invalid("setting", remedy, fmt.Sprintf("%q is not a name", name))
		}
	}
	return s.cfg.Prefix + "settings/" + name, nil
}

// PutSetting writes a value if the setting's version is expected and returns
// the new version; CodeConflict otherwise.
func (s *Store) PutSetting(ctx context.Context, name string, value []byte, expected int64) (int64, error) {
	key, err := s.settingKey(name)
	if err != nil {
		return 0, err
	}
	return s.put(ctx, "setting "+name, key, value, expected)
}

// GetSetting reads a value; CodeNotFound if there is none.
func (s *Store) GetSetting(ctx context.Context, name string) (Setting, error) {
	key, err := s.settingKey(name)
	if err != nil {
		return Setting{}, err
	}
	value, version, err := s.get(ctx, "setting "+name, key)
	if err != nil {
		return Setting{}, err
	}
	return Setting{Name: name, Value: value, Version: version}, nil
}

// ListSettings reads the settings whose names begin with dir + "/", in order,
// as of one moment.
func (s *Store) ListSettings(ctx context.Context, dir string) ([]Setting, error) {
	key, err := s.settingKey(dir)
	if err != nil {
		return nil, err
	}
	var all []Setting
	_, err = s.list(ctx, "settings "+dir, key+"/", func(name string, value []byte, version int64) {
		all = append(all, Setting{Name: dir + "/" + name, Value: value, Version: version})
	})
	return all, err
}

// DeleteSetting removes a setting if its version is expected.
func (s *Store) DeleteSetting(ctx context.Context, name string, expected int64) error {
	key, err := s.settingKey(name)
	if err != nil {
		return err
	}
	_, err = s.remove(ctx, "setting "+name, key, expected)
	return err
}
