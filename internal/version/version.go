// Package version owns the version that every program reports. What a version means to a peer is decided by whoever compares it.
package version

// Version is set when a release is linked (-ldflags "-X github.com/spheroseg/muster/internal/version.Version=…"); nothing else writes it.
var Version = "dev"
