package grpcserver

import "time"

// SetSendTimeout lets a test not wait for the real one.
func (g *Gate) SetSendTimeout(d time.Duration) { g.send = d }
