//go:build race

package relay

// raceEnabled: under the race detector sync.Pool forgets on purpose, so that
// what is allocated says nothing.
const raceEnabled = true
