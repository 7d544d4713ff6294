package daemon

import "net"

// Everywhere reports whether addr, host:port, is on all addresses of a machine: fit
// to listen on, and for nobody else to connect to.
func Everywhere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}
