//go:build goexperiment.runtimesecret

package opener

import "runtime/secret"

// erasing runs f so that the stack and the registers it used are erased before
// erasing returns, and what it allocated when the collector frees it. Our own
// code wipes what it can reach; this is for what it cannot: expanded SM4 keys,
// big numbers, copies made by the compiler and the runtime.
func erasing(f func()) { secret.Do(f) }

// Erases says whether this binary was built so that erasing does what it says.
const Erases = true
