//! Where `sampan-seal` knows the machine, its entry point comes before the C library's. The functions of a container's start lie side by
//! side where it is about speed.

fn main() {
    println!("cargo:rerun-if-changed=src/build.rs");
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if machine == "x86_64" || machine == "aarch64" {
        println!("cargo:rustc-link-arg-bin=sampan=-Wl,--entry=sampan_entry");
    }
    println!("cargo:rerun-if-changed=src/seal/hot.ld");
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0") {
        println!("cargo:rustc-link-arg-bin=sampan=-Wl,--script={folder}/src/seal/hot.ld");
    }
}
