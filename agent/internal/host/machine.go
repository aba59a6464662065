package host

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// machine is what the operating system tells.
type machine struct {
	hostname    string
	platform    string
	kernel      string
	nanoCPUs    int64
	memoryBytes int64
	gpus        uint32
}

// readMachine reads the files of Linux below root. What is not there stays zero: placement then counts on nothing.
func readMachine(root string) machine {
	m := machine{platform: runtime.GOOS + "/" + runtime.GOARCH, nanoCPUs: int64(runtime.NumCPU()) * 1e9}
	m.hostname, _ = os.Hostname()
	kernel, _ := os.ReadFile(filepath.Join(root, "proc/sys/kernel/osrelease"))
	m.kernel = strings.TrimSpace(string(kernel))
	m.memoryBytes = memory(filepath.Join(root, "proc/meminfo"))
	// The NVIDIA driver lists its devices here; a host without it has none that containers could use.
	devices, _ := os.ReadDir(filepath.Join(root, "proc/driver/nvidia/gpus"))
	m.gpus = uint32(len(devices))
	return m
}

// memory returns MemTotal, which the kernel tells in KiB.
func memory(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "MemTotal:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0
		}
		return kib << 10
	}
	return 0
}
