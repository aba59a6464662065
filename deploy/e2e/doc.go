// Package e2e holds the end-to-end tests: real coordinators and agents, real Docker engines on machines of their own, a real registry and a real proxy.
// It owns what is to be shown on them, and leaves to package fleet how they start, break and end. The tests have the build tag e2e, their repetitions
// the build tag crash; without root they skip and say what was not tested.
package e2e
