package sbom

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Subject is what a bill of materials is about.
type Subject struct {
	Name   string // of the image's repository
	Digest string // sha256:…
}

// Encode writes what was found as CycloneDX 1.6 in JSON.
func (s *Scanner) Encode(about Subject) ([]byte, error) {
	bom := cdx.NewBOM()
	bom.SpecVersion = cdx.SpecVersion1_6
	id := sha256.Sum256([]byte("faasd-sec sbom\x00" + about.Name + "\x00" + about.Digest))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
	subject := cdx.Component{Type: cdx.ComponentTypeContainer, Name: about.Name, Version: about.Digest,
		PackageURL: purl("oci", about.Name, about.Digest, "")}
	subject.BOMRef = subject.PackageURL
	bom.Metadata = &cdx.Metadata{Component: &subject, Tools: &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "faasd-sec"}}}}
	list := make([]cdx.Component, 0, len(s.found))
	for _, key := range slices.Sorted(maps.Keys(s.found)) {
		list = append(list, s.found[key])
	}
	bom.Components = &list
	var out bytes.Buffer
	e := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false)
	if err := e.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	return out.Bytes(), nil
}
