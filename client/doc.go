// Package client is the Go SDK of faasd-sec: it invokes sealed functions, and
// deploys, lists, follows and removes them. The command line and the examples
// are built on it.
//
// What it promises: a payload leaves this process only sealed to a key that the
// function's owner signed, with the owner's key pinned or, where Config says so,
// trusted on first use; what it returns as a result came from the holder of the
// function's signing key, for that request. Keys of functions, environment,
// secrets and code leave only sealed to a function or to the pinned key broker.
// Bodies of any size pass in flat memory, both ways.
//
// What it does not: it cannot know what runs on a node; that is the key broker's
// and the evidence's part. Who serves the gateway sees names, sizes and timing,
// and can refuse or delay. The body of a reply is authenticated record by
// record: act on the whole of it only when its reader returned io.EOF.
package client
