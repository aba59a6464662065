package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
)

// Network is a bridge on a machine of its own, to which every machine and the fleet's own process are linked. The bridge is not in the root namespace,
// because a Docker engine there drops what is bridged.
type Network struct {
	f      *Fleet
	bridge *Machine
	links  int
}

func linkName(number int) string { return fmt.Sprintf("mst%d", number) }

func interfaceExists(number int) bool {
	_, err := net.InterfaceByName(linkName(number))
	return err == nil
}

func (f *Fleet) subnet() string { return fmt.Sprintf("10.213.%d", f.number) }

// Loopback is the n-th address of this machine's own that no other fleet uses, for what needs no machine.
func (f *Fleet) Loopback(n int) string { return fmt.Sprintf("127.213.%d.%d", f.number, n) }

// Gateway is the address of the fleet's own process on the network.
func (f *Fleet) Gateway() string { return f.subnet() + ".1" }

// net makes the network when the first machine needs it.
func (f *Fleet) net(ctx context.Context) (*Network, error) {
	f.mu.Lock()
	n := f.network
	f.mu.Unlock()
	if n != nil {
		return n, nil
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("fleet: the command ip is missing: install iproute2")
	}
	bridge, err := f.newMachine(ctx, "switch")
	if err != nil {
		return nil, err
	}
	link := linkName(f.number)
	if err := f.state.change(func(r *record) { r.Links = append(r.Links, link) }); err != nil {
		return nil, err
	}
	err = errors.Join(
		ip(ctx, nil, "link add %s type veth peer name root netns %d\naddr add %s/24 dev %s\nlink set %s up",
			link, bridge.holder.PID(), f.Gateway(), link, link),
		ip(ctx, bridge, "link add br0 type bridge\nlink set br0 up\nlink set root master br0\nlink set root up"))
	if err != nil {
		return nil, err
	}
	n = &Network{f: f, bridge: bridge}
	f.mu.Lock()
	f.network = n
	f.mu.Unlock()
	return n, nil
}

// Machine boots a machine and links it to the network. Machines are made one after the other.
func (f *Fleet) Machine(ctx context.Context, name string) (*Machine, error) {
	n, err := f.net(ctx)
	if err != nil {
		return nil, err
	}
	m, err := f.newMachine(ctx, name)
	if err != nil {
		return nil, err
	}
	n.links++
	m.port = fmt.Sprintf("p%d", n.links)
	m.Address = fmt.Sprintf("%s.%d", f.subnet(), 10+n.links)
	return m, m.link(ctx)
}

func (m *Machine) link(ctx context.Context) error {
	bridge := m.f.network.bridge
	// The link of a killed machine goes when the kernel gets round to it. Usually there is none, which is no error.
	_ = ip(ctx, bridge, "link del %s", m.port)
	// The hardware address stays the same over a reboot, so that nobody's neighbour table leads astray.
	hardware := net.HardwareAddr(append([]byte{2, 0}, net.ParseIP(m.Address).To4()...))
	err := errors.Join(
		ip(ctx, bridge, "link add %s type veth peer name e0 address %s netns %d\nlink set %s master br0\nlink set %s up",
			m.port, hardware, m.holder.PID(), m.port, m.port),
		ip(ctx, m, "addr add %s/24 dev e0\nlink set e0 up\nroute add default via %s", m.Address, m.f.Gateway()))
	if err != nil {
		return fmt.Errorf("link machine %s: %w", m.Name, err)
	}
	return nil
}

// Reboot starts a killed machine again. What ran on it has to be restarted by those who started it.
func (m *Machine) Reboot(ctx context.Context) error {
	if err := m.boot(ctx); err != nil {
		return fmt.Errorf("reboot machine %s: %w", m.Name, err)
	}
	return m.link(ctx)
}

// Cut takes the machine off the network: nothing gets in or out, and nobody is told.
func (m *Machine) Cut(ctx context.Context) error {
	return ip(ctx, m.f.network.bridge, "link set %s down", m.port)
}

// Join puts the machine back on the network, and lets it talk to everybody again.
func (m *Machine) Join(ctx context.Context) error {
	for _, rule := range m.refused {
		if err := m.iptables(ctx, append([]string{"-D"}, rule...)); err != nil {
			return err
		}
	}
	m.refused = nil
	return ip(ctx, m.f.network.bridge, "link set %s up", m.port)
}

// Direction of packets, as a machine sees them.
type Direction int

const (
	// Inbound packets come from others.
	Inbound Direction = iota
	// Outbound packets go to others.
	Outbound
	// BothWays is either.
	BothWays
)

// Refuse makes the machine drop packets of a direction between itself and others, until it joins again; nobody is told.
func (m *Machine) Refuse(ctx context.Context, direction Direction, others ...*Machine) error {
	for _, other := range others {
		var rules [][]string
		if direction != Outbound {
			rules = append(rules, []string{"INPUT", "-s", other.Address, "-j", "DROP"})
		}
		if direction != Inbound {
			rules = append(rules, []string{"OUTPUT", "-d", other.Address, "-j", "DROP"})
		}
		for _, rule := range rules {
			if err := m.iptables(ctx, append([]string{"-I"}, rule...)); err != nil {
				return err
			}
			m.refused = append(m.refused, rule)
		}
	}
	return nil
}

func (m *Machine) iptables(ctx context.Context, args []string) error {
	path, err := exec.LookPath("iptables")
	if err != nil {
		return fmt.Errorf("fleet: the command iptables is missing: install iptables: %w", err)
	}
	_, err = m.f.Run(ctx, Command{Path: path, Args: append([]string{"-w"}, args...), Machine: m})
	return err
}

// ip runs a batch of iproute2 commands in the network namespace of m, or in the root one.
func ip(ctx context.Context, m *Machine, format string, args ...any) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	batch := fmt.Sprintf(format, args...) + "\n"
	cmd.Stdin = strings.NewReader(batch)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	start := cmd.Start
	if m != nil {
		start = func() error { return m.enter(netNamespace, cmd.Start) }
	}
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("ip %q: %w: %s", batch, err, strings.TrimSpace(out.String()))
	}
	return nil
}

func deleteLink(name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil // it went with its machine
	}
	out, err := exec.Command("ip", "link", "del", name).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Cannot find device") {
		return fmt.Errorf("remove %s: %w: %s", name, err, out)
	}
	return nil
}
