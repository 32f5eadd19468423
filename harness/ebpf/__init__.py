"""Loading eBPF: libbpf, BTF sources, the asset loader, the fallback chain."""
