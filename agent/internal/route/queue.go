package route

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
)

// migrateRequests is Linux's switch (5.14 and later) for handing the accept queue of a listener that closes to another one on the same port.
const migrateRequests = "/proc/sys/net/ipv4/tcp_migrate_req"

// KeepQueued lets connections that a proxy has not accepted yet survive its reload. A proxy that loads a configuration opens new listeners with
// SO_REUSEPORT and closes the old ones; without the switch the kernel resets whatever waited in their queues, a few requests in a
// thousand under load. It is set in the network namespace of this process, which must be the proxy's. Where it cannot be set, the log
// says what that means.
func KeepQueued(logger *slog.Logger) {
	changed, err := setSwitch(migrateRequests)
	switch {
	case err != nil:
		logger.Warn("connections may be reset while the proxy takes a new configuration: set net.ipv4.tcp_migrate_req=1 with sysctl, as 60-muster.conf does in /etc/sysctl.d", "component", "route", "err", err)
	case changed:
		logger.Info("sysctl set, so that no connection is lost while the proxy takes a new configuration", "component", "route", "sysctl", "net.ipv4.tcp_migrate_req=1")
	}
}

// setSwitch sets a switch of the kernel to 1 and says whether it was 0.
func setSwitch(path string) (changed bool, err error) {
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("this kernel is older than 5.14: %w", err)
	}
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(now)) == "1" {
		return false, nil
	}
	return true, os.WriteFile(path, []byte("1"), 0o644)
}
