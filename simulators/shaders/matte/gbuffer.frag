#version 450
// Lambert's law: ambient and directional light on matte surfaces, without shadows, gloss or surroundings.
// SAPIEN 3 knows the blocks and what is in them by their names.

layout(set = 2, binding = 0) uniform MaterialBuffer {
  vec4 emission;
  vec4 baseColor;
  float fresnel;
  float roughness;
  float metallic;
  float transmission;
  float ior;
  float transmissionRoughness;
  int textureMask;
  int padding1;
  vec4 textureTransforms[6];
} material;

layout(set = 2, binding = 1) uniform sampler2D colorTexture;

struct PointLight { vec4 position; vec4 emission; };
struct DirectionalLight { vec4 direction; vec4 emission; };
struct SpotLight { vec4 position; vec4 direction; vec4 emission; };

layout(set = 3, binding = 0) uniform SceneBuffer {
  vec4 ambientLight;
  PointLight pointLights[10];
  DirectionalLight directionalLights[3];
  SpotLight spotLights[10];
  SpotLight texturedLights[1];
} scene;

layout(location = 0) in vec3 facing;
layout(location = 1) in vec2 place;

layout(location = 0) out vec4 outColor;

const float PI = 3.14159265;

void main() {
  vec4 transform = material.textureTransforms[0];
  bool textured = (material.textureMask & 1) != 0;
  vec4 surface = textured ? texture(colorTexture, place * transform.zw + transform.xy) : material.baseColor;
  vec3 light = scene.ambientLight.rgb;
  for (int i = 0; i < 3; ++i) {
    vec3 direction = scene.directionalLights[i].direction.xyz;
    float size = length(direction);  // 0 where there is no such light
    if (size > 0) {
      light += scene.directionalLights[i].emission.rgb * max(dot(normalize(facing), -direction / size), 0) / PI;
    }
  }
  outColor = vec4(pow(clamp(light * surface.rgb + material.emission.rgb, 0, 1), vec3(1 / 2.2)), 1);
}
