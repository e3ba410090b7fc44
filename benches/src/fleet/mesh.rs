//! The mesh that is simulated: sites with a network each, as islands of a fog have them, and a few services on every site
//! with many instances.

use std::net::{IpAddr, Ipv4Addr};

/// The trust domain of every fleet.
pub const TRUST_DOMAIN: &str = "fleet.example";

/// Proxies that one fleet may have: as many addresses as the scheme of [`Mesh::address`] has to give.
pub const PROXIES_MAX: usize = 60_000;

const API_VERSION: &str = "signet.mf2c-project.eu/v1alpha1";

/// How many there are of what.
#[derive(Clone, Copy, Debug)]
pub struct Mesh {
    /// In all.
    pub proxies: usize,
    /// On one site: who shares a directory.
    pub per_site: usize,
    /// Services of one site; its proxies are their instances.
    pub services: usize,
}

impl Mesh {
    /// Sites, the last one maybe not full.
    pub fn sites(&self) -> usize {
        self.proxies.div_ceil(self.per_site)
    }

    /// Where a proxy is.
    pub fn site_of(&self, proxy: usize) -> usize {
        proxy / self.per_site
    }

    /// The name of a site's network.
    pub fn network(site: usize) -> String {
        format!("site-{site}")
    }

    /// The service that a proxy stands before, by its name.
    pub fn service_of(&self, proxy: usize) -> String {
        Self::service(self.site_of(proxy), proxy % self.services)
    }

    /// Instances that one service may have.
    pub fn instances(&self) -> usize {
        self.per_site.div_ceil(self.services)
    }

    /// Every service's name.
    pub fn service_names(&self) -> impl Iterator<Item = String> {
        let services = self.services;
        (0..self.sites()).flat_map(move |site| (0..services).map(move |service| Self::service(site, service)))
    }

    /// A loopback address of each proxy's own, from which it connects: ports of one address would not suffice for all.
    pub fn address(proxy: usize) -> IpAddr {
        // 127.1.0.0 and above: nothing else is there.
        let number = u32::try_from(proxy % PROXIES_MAX).unwrap_or_default();
        Ipv4Addr::from_bits(0x7f01_0001 + number).into()
    }

    /// The manifests, one text for each site and one for what all have in common.
    pub fn manifests(&self) -> Vec<String> {
        let networks: String = (0..self.sites())
            .map(|site| format!("    - {{ name: {}, cidrs: [127.0.0.0/8] }}\n", Self::network(site)))
            .collect();
        let mesh = format!(
            "apiVersion: {API_VERSION}\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec:\n  trustDomain: {TRUST_DOMAIN}\n  \
             networks:\n{networks}"
        );
        let sites = (0..self.sites()).map(|site| self.site(site));
        std::iter::once(mesh).chain(sites).collect()
    }

    fn site(&self, site: usize) -> String {
        let mut text = String::new();
        for service in 0..self.services {
            let (name, network) = (Self::service(site, service), Self::network(site));
            text += &format!(
                "---\napiVersion: {API_VERSION}\nkind: Workload\nmetadata: {{ name: {name} }}\nspec: {{ class: app, \
                 device: {network}, network: {network}, names: [{name}.example], ports: [{{ port: 8080 }}] }}\n"
            );
            let caller = Self::service(site, (service + 1) % self.services);
            text += &format!(
                "---\napiVersion: {API_VERSION}\nkind: AccessPolicy\nmetadata: {{ name: {name} }}\nspec:\n  target: {{ \
                 workloads: [{name}] }}\n  ports: [8080]\n  rules:\n    - name: read\n      from: [{{ identity: \
                 spiffe://{TRUST_DOMAIN}/app/{network}/{caller} }}]\n      to: [{{ methods: [GET], paths: [\"/api/**\"] }}]\n"
            );
        }
        text
    }

    /// A policy that changes with `number`: what an operator applies.
    pub fn change(number: usize) -> String {
        format!(
            "apiVersion: {API_VERSION}\nkind: AccessPolicy\nmetadata: {{ name: change }}\nspec:\n  target: {{ workloads: \
             [{}] }}\n  ports: [8080]\n  rules:\n    - name: change-{number}\n      from: [{{ class: app }}]\n      to: [{{ \
             methods: [GET], paths: [\"/v{number}/**\"] }}]\n",
            Self::service(0, 0)
        )
    }

    fn service(site: usize, service: usize) -> String {
        format!("service-{site}-{service}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proxy_has_a_service_of_its_own_site_and_an_address_of_its_own() {
        let mesh = Mesh { proxies: 250, per_site: 100, services: 3 };
        assert_eq!((mesh.sites(), mesh.instances()), (3, 34));
        let names: Vec<String> = mesh.service_names().collect();
        assert_eq!(names.len(), 9);
        for proxy in 0..250 {
            let service = mesh.service_of(proxy);
            assert!(names.contains(&service) && service.starts_with(&format!("service-{}-", proxy / 100)));
        }
        let mut addresses: Vec<IpAddr> = (0..PROXIES_MAX).map(Mesh::address).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), PROXIES_MAX);
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }
}
