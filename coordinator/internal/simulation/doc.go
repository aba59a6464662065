// Package simulation owns the proof that the parts hold together under faults: a cluster of real coordinators (raft, state machine, engine) and
// simulated hosts in virtual time, campaigns of random faults, and the checkers that judge what the log and the hosts' journals say afterwards.
// It holds tests only. What one part does by itself is tested beside it, and what real disks, sockets and processes do in deploy/e2e.
package simulation
