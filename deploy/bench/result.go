package main

import (
	"fmt"
	"io"
	"slices"
)

// series are the figures of one system, one for each paired run.
type series []float64

// median of the figures; the mean of the middle two of an even number.
func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// slowest of the figures.
func (s series) slowest() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// report prints one RESULT line: ours against a peer's.
func report(out io.Writer, name, metric, unit, peer string, ours, theirs series) {
	ratio := "-"
	if p := theirs.median(); p != 0 {
		ratio = fmt.Sprintf("%.3f", ours.median()/p)
	}
	_, _ = fmt.Fprintf(out, "RESULT name=%s metric=%s value=%.3f unit=%s peer=%s ratio=%s peer_value=%.3f runs=%d\n",
		name, metric, ours.median(), unit, peer, ratio, theirs.median(), len(ours))
}
