package container

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// States of a TCP socket as the kernel numbers them.
const (
	tcpEstablished = 0x01
	tcpSynRecv     = 0x03
	tcpListen      = 0x0a
)

// socket is one TCP socket of a network namespace.
type socket struct {
	family string // "tcp" or "tcp6".
	port   uint32 // its local one.
	state  uint64
	inode  string
}

// bothFamilies are the kernel's tables of TCP sockets. Reading one walks the sockets of all namespaces: milliseconds of a processor on a large host.
var bothFamilies = []string{"tcp", "tcp6"}

// sockets returns the TCP sockets, of the address families, of the network namespace that a process is in. A process that is gone is
// fs.ErrNotExist.
func sockets(pid int, families []string) ([]socket, error) {
	var all []socket
	for _, family := range families {
		path := filepath.Join("/proc", strconv.Itoa(pid), "net", family)
		one, err := readSockets(path, family)
		if errors.Is(err, fs.ErrNotExist) && family == "tcp6" { // a kernel without IPv6.
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
	}
	return all, nil
}

func readSockets(path, family string) ([]socket, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []socket
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[0] == "sl" {
			continue
		}
		_, hexPort, ok := strings.Cut(fields[1], ":")
		if !ok {
			continue
		}
		port, errPort := strconv.ParseUint(hexPort, 16, 16)
		state, errState := strconv.ParseUint(fields[3], 16, 8)
		if errPort != nil || errState != nil {
			return nil, fmt.Errorf("%s: unexpected line %q", path, lines.Text())
		}
		all = append(all, socket{family: family, port: uint32(port), state: state, inode: fields[9]})
	}
	return all, lines.Err()
}

// owner names the process that holds one of the sockets, as "nginx (pid 812)"; "" if none is found or it may not be seen.
func owner(inodes map[string]bool) string {
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil { // the process has ended.
			continue
		}
		for _, entry := range entries {
			target, err := os.Readlink(filepath.Join(dir, entry.Name()))
			if err != nil || !strings.HasPrefix(target, "socket:[") || !inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] {
				continue
			}
			comm, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "comm"))
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(filepath.Dir(dir)))
		}
	}
	return ""
}

// inodesOf returns the sockets that the processes hold.
func inodesOf(pids []string) map[string]bool {
	out := make(map[string]bool)
	for _, pid := range pids {
		links, err := filepath.Glob(filepath.Join("/proc", pid, "fd", "*"))
		if err != nil {
			continue
		}
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "socket:[") {
				out[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
			}
		}
	}
	return out
}
