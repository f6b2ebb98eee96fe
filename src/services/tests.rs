use super::*;

/// A cache, an environment without NVRTC, and a policy of the caller's count, whatever the process's environment says.
#[test]
fn what_is_given_counts() {
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::at(&folder.path().join("kernels")).unwrap();
    let given = Services::builder()
        .cache(cache.clone())
        .environment(Environment::empty(folder.path()))
        .policy(Policy::CacheOnly)
        .build();
    assert_eq!(given.cache().unwrap().unwrap().root(), cache.root());
    assert_eq!(given.policy().unwrap(), Policy::CacheOnly);
    assert!(matches!(given.toolchain(), Err(ToolchainError::NotFound { searched }) if !searched.is_empty()));
    assert_eq!(given.nvrtc_version(), None);
    assert_eq!(given.clone().policy().unwrap(), Policy::CacheOnly);
    assert!(Services::builder().no_cache().build().cache().unwrap().is_none());
}

#[test]
fn listeners_hear_every_step() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let services =
        Services::builder().on_first_use(move |step| hears.lock().unwrap().push(step.to_string())).build();
    let steps =
        [Progress::Waiting { holder: "process 7" }, Progress::Compiling { done: 1, of: 3 }, Progress::Done];
    for progress in steps {
        services.tell(&FirstUse::new("NVIDIA H200", "forward", progress));
    }
    assert_eq!(
        *heard.lock().unwrap(),
        [
            "first use on NVIDIA H200: waiting for process 7, which tunes on it, then forward",
            "first use on NVIDIA H200: compiling forward, 1 of 3",
            "first use on NVIDIA H200: forward is ready",
        ]
    );
    Services::from_env().tell(&FirstUse::new("NVIDIA H200", "forward", Progress::Done));
}

#[test]
fn a_device_has_the_services_it_was_given() {
    let services = Services::builder().no_cache().build();
    assert!(!crate::Device::cpu().with_services(&services).is_cuda());
    fn shared<T: Send + Sync>() {}
    shared::<Services>();
}
