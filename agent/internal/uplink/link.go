package uplink

import (
	"context"
	"slices"
	"sync"
)

// link is one address of a coordinator. Its Uplink's mutex guards all but address.
type link struct {
	address string
	// drop ends the dialling; nil before it began.
	drop context.CancelFunc
	// listed says that the address is in the last Set. One that is not stays for as long as it answers.
	listed bool
	// peer is who answered last, and connected that it is still there.
	peer      string
	connected bool
}

// Set names all coordinators. A new address is dialled at once. One that is not named any more keeps its connection; it is dropped when it
// does not answer although another does, or when its coordinator is reached at an address that is named. Addresses that CheckAddress
// refuses must not be given.
func (u *Uplink) Set(coordinators []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	changed := false
	for _, l := range u.links {
		if l.listed && !slices.Contains(coordinators, l.address) {
			l.listed, changed = false, true
		}
	}
	for _, address := range coordinators {
		l, ok := u.links[address]
		if !ok {
			l = &link{address: address}
			u.links[address] = l
		}
		changed = changed || !l.listed
		l.listed = true
	}
	for _, l := range u.links {
		if !l.listed && u.rival(l, true) != nil {
			u.forget(l)
		} else if changed && !l.connected {
			l.peer = "" // another coordinator may be there now.
		}
	}
	select {
	case u.added <- struct{}{}:
	default: // Run will look anyway.
	}
}

// begin keeps the links that nobody keeps yet.
func (u *Uplink) begin(ctx context.Context, running *sync.WaitGroup) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.links {
		if l.drop != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		l.drop = cancel
		running.Go(func() {
			defer cancel()
			u.keep(ctx, l)
		})
	}
}

// reached records who answered at an address, and says whether the connection is wanted.
func (u *Uplink) reached(l *link, peer string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	l.peer = peer
	if !l.listed && u.rival(l, true) != nil {
		u.forget(l)
		return false
	}
	l.connected = true
	for _, other := range u.links {
		if !other.listed && l.listed && other.peer == peer {
			u.forget(other)
		}
	}
	return true
}

func (u *Uplink) lost(l *link) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l.connected = false
}

// elsewhere says that the coordinator of an address is connected at another one.
func (u *Uplink) elsewhere(l *link) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return l.peer != "" && u.rival(l, false) != nil
}

// giveUp drops an address that does not answer if it is not listed, and a listed one is connected: without any, it may be the way back.
func (u *Uplink) giveUp(l *link) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if l.listed {
		return false
	}
	for _, other := range u.links {
		if other.listed && other.connected {
			u.forget(l)
			return true
		}
	}
	return false
}

// rival returns another address at which the coordinator of l is connected, or nil; with listed, one that is listed.
func (u *Uplink) rival(l *link, listed bool) *link {
	for _, other := range u.links {
		if other != l && other.connected && other.peer == l.peer && (other.listed || !listed) {
			return other
		}
	}
	return nil
}

func (u *Uplink) forget(l *link) {
	if l.drop != nil {
		l.drop()
	}
	if u.links[l.address] == l {
		delete(u.links, l.address)
	}
}
