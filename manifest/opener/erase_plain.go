//go:build !goexperiment.runtimesecret

package opener

// erasing runs f. Without GOEXPERIMENT=runtimesecret copies that our code cannot
// reach stay in memory until it is used again.
func erasing(f func()) { f() }

// Erases says whether this binary was built so that erasing does what it says.
const Erases = false
