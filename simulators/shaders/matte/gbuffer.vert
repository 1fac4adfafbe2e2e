#version 450
// Where each vertex is seen, and which way its surface faces. SAPIEN 3 knows the blocks and what is in
// them by their names.

layout(set = 0, binding = 0) uniform CameraBuffer {
  mat4 viewMatrix;
  mat4 projectionMatrix;
  mat4 viewMatrixInverse;
  mat4 projectionMatrixInverse;
  float width;
  float height;
} camera;

layout(set = 1, binding = 0) uniform ObjectTransformBuffer {
  mat4 modelMatrix;
} object;

layout(set = 1, binding = 1) uniform ObjectDataBuffer {
  uvec4 segmentation;
  float transparency;
  int shadeFlat;
} objectData;

layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec2 uv;
layout(location = 3) in vec3 tangent;
layout(location = 4) in vec3 bitangent;

layout(location = 0) out vec3 facing;
layout(location = 1) out vec2 place;

void main() {
  facing = mat3(transpose(inverse(object.modelMatrix))) * normal;
  place = uv;
  gl_Position = camera.projectionMatrix * camera.viewMatrix * object.modelMatrix * vec4(position, 1);
}
