// Package network gives a sandbox that asked for it an interface, an address,
// a rate in each direction and ports of the host, and nothing beyond what it
// was granted.
//
// It promises that
//   - a sandbox nobody calls Attach for keeps its loopback alone;
//   - both directions are shaped to the rates of Want, and the kernel's qdiscs,
//     filters, policy and port flags were read back before Attach returned;
//   - what a sandbox may open is the allow-list of Want. Without one it may
//     answer what comes in through its published ports, and open nothing;
//   - no sandbox reaches another one, a daemon on any address of this host, a
//     metadata service of a cloud or Config.Never, whatever its list says;
//   - it sends from its own address and hardware address only, and no IPv6;
//   - what an attachment made is found again after a SIGKILL at any point, and
//     removed by Recover or Detach: address, interfaces, qdiscs, rules.
//
// It does not promise that the measured agent is held back while Attach is
// still at work: attach before the function starts. It does not hide traffic
// from the host, and it trusts the plugins below Config.PluginDir as it trusts
// the kernel. Other rules of the host may refuse what is granted here.
//
// The interface, its address, its rates and its published ports are made by the
// CNI plugins of the distribution; what is refused is decided by nftables tables
// of our own, which no rule made by others can override with an accept.
package network
