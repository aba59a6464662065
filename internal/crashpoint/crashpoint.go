// Package crashpoint ends its own process with SIGKILL at a chosen place in the program, so that a test can kill it before and after every write that
// must survive a crash. It owns the places' names and how a test counts and arms them, and leaves what has to hold afterwards to the test.
//
// Only a program that is built with the tag crashpoint has any of this: in every other one Hit is an empty function, which the compiler removes.
//
// Such a program maps the file that MUSTER_CRASHPOINTS names, which the test made and maps too. It holds two numbers for each point: how often it was
// passed, and at which of these times the process dies. So the count survives the kill, and costs the program no system call.
package crashpoint

// Point is a place in a program.
type Point int

const (
	// LogBefore is before entries are written to the raft log.
	LogBefore Point = iota
	// LogAfter is after entries were written to the raft log.
	LogAfter
	// ApplyBefore is before an entry is applied to the state.
	ApplyBefore
	// ApplyAfter is after an entry was applied to the state.
	ApplyAfter
	// LedgerBefore is before a frame is written to the ledger.
	LedgerBefore
	// LedgerAfter is after a frame was written to the ledger and synced.
	LedgerAfter
	// EffectBefore is before the tests' fake engine makes an effect.
	EffectBefore
	// EffectAfter is after the tests' fake engine made an effect, and before it answers.
	EffectAfter

	// Points is the number of points.
	Points
)

const (
	// Variable of the environment that names the file.
	Variable = "MUSTER_CRASHPOINTS"
	// FileSize is the size of the file in bytes: for each point the count and the target, each a 64-bit integer in the machine's own order.
	FileSize = int(Points) * 2 * 8
)

// String names the point in words.
func (p Point) String() string {
	names := [...]string{"before log write", "after log write", "before apply", "after apply", "before ledger write", "after ledger write", "before effect", "after effect"}
	if p < 0 || int(p) >= len(names) {
		return "unknown point"
	}
	return names[p]
}
