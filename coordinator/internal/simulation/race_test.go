//go:build race

package simulation

// raceDetector says that this is a build with it.
const raceDetector = true
