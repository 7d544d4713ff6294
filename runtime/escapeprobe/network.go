package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func openSocket(family, kind, proto int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func networkAttempts(t targets) []attempt {
	dial := func(network, addr string) error {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
	return []attempt{
		{"socket_netlink", func() error { return openSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) }},
		{"socket_packet", func() error { return openSocket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
		{"socket_vsock", func() error { return openSocket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) }},
		{"socket_alg", func() error { return openSocket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) }},
		{"socket_xdp", func() error { return openSocket(unix.AF_XDP, unix.SOCK_RAW, 0) }},
		{"socket_bluetooth", func() error { return openSocket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 0) }},
		{"socket_raw_ip", func() error { return openSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"reach_host_loopback", func() error { return dial("tcp", t.tcp) }},
		{"reach_host_abstract_socket", func() error { return dial("unix", "@"+t.abstract) }},
		{"reach_network", func() error { return dial("udp", "192.0.2.1:53") }}, // connects only where there is a route
		{"other_interfaces", func() error {
			b, err := os.ReadFile("/proc/net/dev")
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name != "lo" {
					return nil
				}
			}
			return errors.New("loopback only")
		}},
	}
}

// controls are what must work, so that a sandbox in which nothing does is not
// taken for a safe one.
func controls(t targets) []attempt {
	list := []attempt{
		{"control_unix_socket", func() error { return openSocket(unix.AF_UNIX, unix.SOCK_STREAM, 0) }},
		{"control_write_tmp", func() error { return os.WriteFile(fmt.Sprintf("/tmp/x%d", os.Getuid()), []byte("x"), 0o600) }},
		{"control_write_secrets", func() error {
			if os.Getuid() == 0 {
				return openable("/dev/null", unix.O_WRONLY) // not root's to write
			}
			return os.WriteFile("/var/openfaas/secrets/x", []byte("x"), 0o400)
		}},
		{"control_memfd_create", func() error {
			fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{"control_memfd_secret", func() error {
			fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{"control_pidfd", func() error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.PidfdSendSignal(fd, 0, nil, 0)
		}},
		{"control_read_meminfo", func() error { return readable("/proc/meminfo") }},
		{"control_random", func() error { return readable("/dev/urandom") }},
		{"control_start_child", func() error { return inChild("nothing") }},
	}
	if t.inet {
		list = append(list, attempt{"control_listen_80", func() error {
			l, err := net.Listen("tcp", "127.0.0.1:80")
			if err != nil {
				return err
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			return c.Close()
		}})
	} else {
		list = append(list, attempt{"socket_inet", func() error { return openSocket(unix.AF_INET, unix.SOCK_STREAM, 0) }},
			attempt{"socket_inet6", func() error { return openSocket(unix.AF_INET6, unix.SOCK_STREAM, 0) }})
	}
	return list
}
