package store

import clientv3 "go.etcd.io/etcd/client/v3"

// Etcd lends the connection to packages that keep records of their own beside
// the functions, below the returned prefix, which ends with '/'. It ends with
// Close.
func (s *Store) Etcd() (client *clientv3.Client, prefix string) { return s.client, s.cfg.Prefix }
