package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/docker/api/types/container"
)

// boundPort finds the address in what engines say when they cannot bind a port.
var boundPort = regexp.MustCompile(`(?:Bind for |listen (?:tcp|udp)[46]? |bind host port (?:for )?)(\[?[0-9a-fA-F.:]+\]?):(\d{1,5})`)

// takenPort returns the host address that the engine could not bind, as address:port.
func takenPort(text string) (string, bool) {
	if !strings.Contains(text, "port is already allocated") && !strings.Contains(text, "address already in use") {
		return "", false
	}
	m := boundPort.FindStringSubmatch(text)
	if m == nil {
		return "(unknown)", true
	}
	ip := strings.Trim(m[1], "[]")
	// Newer engines add the container's side: 0.0.0.0:8080:172.17.0.2:80.
	if first, rest, ok := strings.Cut(ip, ":"); ok && net.ParseIP(ip) == nil && net.ParseIP(first) != nil {
		port, _, _ := strings.Cut(rest, ":")
		return net.JoinHostPort(first, port), true
	}
	return net.JoinHostPort(ip, m[2]), true
}

// badCommand says that the container's own command, user or folder cannot be used, which no second attempt changes.
func badCommand(text string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc([]string{
		"executable file not found", "exec format error", "no such file or directory\": unknown", "starting container process caused",
		"unable to find user", "could not select device driver", "not in a separate kernel namespace", "are you trying to mount a directory onto a file",
	}, func(sign string) bool { return strings.Contains(text, sign) })
}

// holder says who holds the host port, as the end of a sentence; "" if that cannot be found out.
func (e *Engine) holder(ctx context.Context, hostport, except string) string {
	ip, text, err := net.SplitHostPort(hostport)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ""
	}
	running, err := e.running(ctx)
	if err == nil {
		for _, c := range running {
			if c.ID != except && publishes(c, ip, uint32(port), "") {
				return " by container " + nameOf(c)
			}
		}
	}
	if process := listener(uint32(port)); process != "" {
		return " by " + process
	}
	return ""
}

func (e *Engine) running(ctx context.Context) ([]container.Summary, error) {
	var out []container.Summary
	err := e.read(ctx, func(ctx context.Context) (err error) {
		out, err = e.docker.ContainerList(ctx, container.ListOptions{})
		return err
	})
	return out, err
}

func nameOf(c container.Summary) string {
	if len(c.Names) == 0 {
		return c.ID
	}
	return strings.TrimPrefix(c.Names[0], "/")
}

// publishes says that a container holds the port on an address that excludes another listener on ip. An empty proto is any.
func publishes(c container.Summary, ip string, port uint32, proto string) bool {
	return slices.ContainsFunc(c.Ports, func(p container.Port) bool {
		return uint32(p.PublicPort) == port && (proto == "" || p.Type == proto) && overlap(p.IP, ip)
	})
}

// overlap says that two addresses cannot both be bound to one port.
func overlap(a, b string) bool {
	x, y := net.ParseIP(a), net.ParseIP(b)
	return x == nil || y == nil || x.IsUnspecified() || y.IsUnspecified() || x.Equal(y)
}

// listener names the process that listens on a TCP port of this host.
func listener(port uint32) string {
	all, err := sockets(os.Getpid(), bothFamilies)
	if err != nil {
		return ""
	}
	inodes := make(map[string]bool)
	for _, s := range all {
		if s.state == tcpListen && s.port == port {
			inodes[s.inode] = true
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	return owner(inodes)
}

// tryBind binds a port for a moment. It returns nil if that is possible, or if only the agent itself may not do it.
func tryBind(ctx context.Context, ip string, port uint32, proto string) error {
	address := net.JoinHostPort(ip, strconv.FormatUint(uint64(port), 10))
	var lc net.ListenConfig
	var err error
	if proto == "udp" {
		var conn net.PacketConn
		if conn, err = lc.ListenPacket(ctx, "udp", address); err == nil {
			err = conn.Close()
		}
	} else {
		var l net.Listener
		if l, err = lc.Listen(ctx, "tcp", address); err == nil {
			err = l.Close()
		}
	}
	switch {
	case err == nil, errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return syscall.EADDRINUSE
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return syscall.EADDRNOTAVAIL
	default:
		return fmt.Errorf("bind %s: %w", address, err)
	}
}
