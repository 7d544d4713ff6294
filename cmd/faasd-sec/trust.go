package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func (a *app) keyTrust() *cobra.Command {
	cmd := &cobra.Command{Use: "trust", Short: "Pin the keys of a key broker or of a function's owner", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	broker := &cobra.Command{Use: "broker [FINGERPRINT]", Short: "Pin the gateway's key broker, which function keys are deposited with",
		Long: "Pin the key broker of the gateway. It is asked for its keys, and they are kept if they have the\n" +
			"fingerprint given, which its operator tells you by another way. Without a fingerprint it is only shown,\n" +
			"unless --trust-first-use is given.",
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.trustBroker(cmd.Context(), args) }}
	a.trustFlag(broker)
	opener := &cobra.Command{Use: "manifest-opener [FINGERPRINT]", Short: "Pin the gateway's manifest opener, which is told what tasks need",
		Long: "Pin the manifest opener of the gateway: who signs the keys that manifests are sealed to. As for a broker,\n" +
			"it is shown only, unless its fingerprint or --trust-first-use is given.",
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.trustOpener(cmd.Context(), args) }}
	a.trustFlag(opener)
	cmd.AddCommand(broker, opener,
		&cobra.Command{Use: "owner FUNCTION|NAMESPACE FINGERPRINT", Short: "Pin the owner of a function or of a whole namespace",
			Long: "Pin the owner whose signature counts for a function (\"hello.openfaas-fn\"), or for all functions of a\n" +
				"namespace (\"openfaas-fn\"). A pin of a function goes before its namespace's.",
			Args: usageArgs(cobra.ExactArgs(2)),
			RunE: func(_ *cobra.Command, args []string) error { return a.trustOwner(args[0], args[1]) }},
		&cobra.Command{Use: "list", Short: "List the pins", Args: usageArgs(cobra.NoArgs), RunE: func(*cobra.Command, []string) error { return a.trustList() }})
	return cmd
}

func (a *app) trustBroker(ctx context.Context, args []string) error {
	if len(args) == 1 { // before anybody is asked
		if _, err := parseFingerprint(args[0]); err != nil {
			return err
		}
	}
	c, err := a.anonymous()
	if err != nil {
		return err
	}
	defer c.Close()
	info, err := c.Broker(ctx)
	if err != nil {
		return err
	}
	pin, err := client.ParseBrokerPin(info)
	if err != nil {
		return err
	}
	return a.pin("key broker", client.Pin{Gateway: a.gatewayURL(""), Kind: "broker", Fingerprint: pin.Fingerprint()}, args, func(gateway string) error {
		return client.PinBroker(a.configDir, gateway, info)
	})
}

func (a *app) trustOpener(ctx context.Context, args []string) error {
	if len(args) == 1 { // before anybody is asked
		if _, err := parseFingerprint(args[0]); err != nil {
			return err
		}
	}
	c, err := a.anonymous()
	if err != nil {
		return err
	}
	defer c.Close()
	keys, err := c.ManifestKeys(ctx)
	if err != nil {
		return err
	}
	identity, err := sealed.ParsePublicKeyText(keys.Identity)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the manifest opener's key does not parse")
	}
	return a.pin("manifest opener", client.Pin{Gateway: a.gatewayURL(""), Kind: "manifest-opener", Fingerprint: identity.Fingerprint()}, args, func(gateway string) error {
		return client.PinOpener(a.configDir, gateway, keys)
	})
}

// pin keeps what the gateway named, if a person says that it is the one.
func (a *app) pin(what string, pin client.Pin, args []string, keep func(gateway string) error) error {
	if len(args) == 0 && !a.trustFirstUse {
		return &api.Error{Code: api.CodeForbidden, Field: "FINGERPRINT",
			Message: fmt.Sprintf("the %s of %s has fingerprint %s; nothing was pinned", what, pin.Gateway, pin.Fingerprint),
			Remedy:  "compare it with what its operator tells you, then give it as the argument"}
	}
	if len(args) == 1 {
		want, err := parseFingerprint(args[0])
		if err != nil {
			return err
		}
		if want != pin.Fingerprint {
			return &api.Error{Code: api.CodeForbidden, Field: "FINGERPRINT",
				Message: fmt.Sprintf("the %s of %s has fingerprint %s", what, pin.Gateway, pin.Fingerprint),
				Remedy:  "this is not the one you were told of: ask its operator"}
		}
	}
	if err := keep(pin.Gateway); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(pin)
	}
	fmt.Fprintf(a.stdout, "pinned %s %s for %s\n", what, pin.Fingerprint, pin.Gateway)
	return nil
}

func parseFingerprint(s string) (sealed.Fingerprint, error) {
	f, err := sealed.ParseFingerprint(s)
	if err != nil {
		return f, api.Invalid("FINGERPRINT", "give the 64 hex digits that faasd-sec key show prints", fmt.Sprintf("%q is not a fingerprint", s))
	}
	return f, nil
}

func (a *app) trustOwner(what, print string) error {
	owner, err := parseFingerprint(print)
	if err != nil {
		return err
	}
	// A bare word is a namespace, unlike elsewhere: to pin all of a namespace by
	// mistyping a function's name must not be possible, so functions need the dot.
	check := what
	if !strings.Contains(what, ".") {
		check = "any." + what
	}
	if _, err := api.ParseFunctionName(check); err != nil {
		return err
	}
	pins, err := client.OpenPins(a.configDir)
	if err != nil {
		return err
	}
	gateway := strings.TrimRight(a.gatewayURL(""), "/")
	if err := pins.SetOwner(gateway, what, owner); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(client.Pin{Gateway: gateway, Kind: "owner", Name: what, Fingerprint: owner})
	}
	fmt.Fprintf(a.stdout, "pinned %s as the owner of %s at %s\n", owner, what, gateway)
	return nil
}

func (a *app) trustList() error {
	pins, err := client.OpenPins(a.configDir)
	if err != nil {
		return err
	}
	list := pins.List()
	slices.SortFunc(list, func(x, y client.Pin) int {
		return cmp.Or(cmp.Compare(x.Gateway, y.Gateway), cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name))
	})
	if a.json() {
		return a.printJSON(list)
	}
	t := newTable("GATEWAY", "KIND", "NAME", "FINGERPRINT")
	for _, p := range list {
		t.row(p.Gateway, p.Kind, p.Name, p.Fingerprint.String())
	}
	return t.print(a.stdout)
}
